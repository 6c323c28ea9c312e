"""The read model behind the page of health: what the database tells of the parts around it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from lowtide.domain.breaker import BreakerState
from lowtide.domain.errors import Unavailable
from lowtide.domain.evidence import Backlog, Crew, Evidence, LostEngine
from lowtide.domain.pools import Pool
from lowtide.domain.sightings import Sight, Sighting
from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from sqlalchemy import Engine

SIGHTINGS = "SELECT sight, name, succeeded_at, failed_at, problem FROM sightings"
# The list of statuses is the predicate of the index batches_active.
STEPS = """
SELECT now() AS at,
  count(*) FILTER (WHERE status = 'validating') AS unsplit,
  min(created_at) FILTER (WHERE status = 'validating') AS unsplit_since,
  count(*) FILTER (WHERE drained_at IS NOT NULL) AS unfinalized,
  min(drained_at) AS unfinalized_since
FROM batches WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
"""
CREWS = """
SELECT pool, count(*) AS workers, max(heartbeat_at) AS heartbeat_at,
  coalesce(json_agg(json_build_array(name, pool, engine_state, engine_reason, engine_since) ORDER BY name)
    FILTER (WHERE engine_state <> 'closed'), '[]')::text AS lost_engines
FROM workers WHERE expires_at > now() GROUP BY pool
"""

_decode = msgspec.json.Decoder(list[tuple[str, str, str, str, str]]).decode
_SIGHTINGS, _STEPS, _CREWS = map(text, (SIGHTINGS, STEPS, CREWS))


class PostgresEvidence:
    """Port EvidenceSource, for a role that sees every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Evidence:
        """Return what there is to know of the parts; raises Unavailable."""
        try:
            with begin(self._engine) as connection:
                steps = connection.execute(_STEPS).one()
                sightings = connection.execute(_SIGHTINGS).all()
                crews = connection.execute(_CREWS).all()
        except SQLAlchemyError as error:
            # A page that watches must outlive a schema that is not there yet or a refused password.
            raise Unavailable("The database answers, but refuses to be read.") from error
        return Evidence(
            at=steps.at,
            sightings={
                (Sight(row.sight), row.name): Sighting(row.succeeded_at, row.failed_at, row.problem)
                for row in sightings
            },
            unsplit=Backlog(steps.unsplit, steps.unsplit_since),
            unfinalized=Backlog(steps.unfinalized, steps.unfinalized_since),
            lost_engines=[
                LostEngine(
                    name, Pool(pool), BreakerState(state), reason, datetime.fromisoformat(since)
                )
                for row in crews
                for name, pool, state, reason, since in _decode(row.lost_engines)
            ],
            crews={Pool(row.pool): Crew(row.workers, row.heartbeat_at) for row in crews},
        )

"""The state of components as read from the database, without calling any of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from lowtide.core.errors import LowtideError, Unavailable
from lowtide.core.pools import Pool
from lowtide.database.connections import begin
from lowtide.engines.breaker import BreakerState
from lowtide.status.last_seen import Component, LastSeen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Engine

    from lowtide.status.operations import Sample


@dataclass(frozen=True, slots=True)
class Backlog:
    """The batches that wait for a step; the first has waited since `since`."""

    batches: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Crew:
    """A pool's workers with an unexpired lease, and the time of their last heartbeat."""

    workers: int
    heartbeat_at: datetime


@dataclass(frozen=True, slots=True)
class LostEngine:
    """A worker whose engine breaker is not closed since `since`."""

    worker: str
    pool: Pool
    state: BreakerState
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Evidence:
    """One reading; `at` and all other times are the database's.

    `unsplit` batches wait for their file to be split, `unfinalized` ones for their output files.
    """

    at: datetime
    last_seen: Mapping[tuple[Component, str], LastSeen]
    unsplit: Backlog
    unfinalized: Backlog
    crews: Mapping[Pool, Crew]
    lost_engines: Sequence[LostEngine] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """The desired and the live replicas of a pool; there are too few since `short_since`."""

    desired: int
    live: int
    short_since: datetime | None


def scales_of(samples: Sequence[Sample]) -> dict[Pool, Scale]:
    """Return the scale of each pool from samples, oldest first; empty without samples."""
    if not samples:
        return {}
    found = {}
    for pool, last in samples[-1].pools.items():
        short_since = None
        for sample in reversed(samples):
            then = sample.pools.get(pool)
            if then is None or then.workers >= then.desired:
                break
            short_since = sample.at
        found[pool] = Scale(last.desired, last.workers, short_since)
    return found


SIGHTINGS = "SELECT sight AS component, name, succeeded_at, failed_at, problem FROM sightings"
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


class EvidenceStore:
    """Queries for the components' state, as a role with access to every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Evidence:
        """Return the state of all components; raises Unavailable."""
        try:
            with begin(self._engine) as connection:
                steps = connection.execute(_STEPS).one()
                seen = connection.execute(_SIGHTINGS).all()
                crews = connection.execute(_CREWS).all()
        except SQLAlchemyError as error:
            # The status pages must survive a missing schema and a refused password.
            raise Unavailable("The database responds, but queries fail.") from error
        return Evidence(
            at=steps.at,
            last_seen={
                (Component(row.component), row.name): LastSeen(
                    row.succeeded_at, row.failed_at, row.problem
                )
                for row in seen
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


@dataclass(frozen=True, slots=True)
class EvidenceSeen:
    """The last good reading, its time by this process's clock, and any error since."""

    evidence: Evidence | None = None
    looked_at: datetime | None = None
    problem: str | None = None


class EvidenceWatch:
    """The last reading of the components' state; `look` keeps it when the database fails."""

    def __init__(self, source: EvidenceStore, *, clock: Callable[[], datetime]) -> None:
        self._source = source
        self._clock = clock
        self._seen = EvidenceSeen()

    @property
    def seen(self) -> EvidenceSeen:
        """The last reading."""
        return self._seen

    def look(self) -> None:
        """Read the database, or record its error."""
        try:
            self._seen = EvidenceSeen(self._source.read(), self._clock())
        except LowtideError as error:
            self._seen = EvidenceSeen(self._seen.evidence, self._seen.looked_at, error.message)

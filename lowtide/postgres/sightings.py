"""When parts were last seen at work: a row each, written seldom."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from lowtide.domain.sightings import Glimpse

# Only the database's clock says when. Twenty replicas of a function see the same: what is nearly as
# new as the row already is leaves it alone.
_WRITE = text("""
INSERT INTO sightings AS s (sight, name, succeeded_at, failed_at, problem)
SELECT sight, name, now() - make_interval(secs => succeeded), now() - make_interval(secs => failed),
  problem
FROM json_to_recordset(cast(:rows AS json)) AS g (
  sight text, name text, succeeded double precision, failed double precision, problem text)
ON CONFLICT (sight, name) DO UPDATE SET
  succeeded_at = greatest(s.succeeded_at, excluded.succeeded_at),
  failed_at = greatest(s.failed_at, excluded.failed_at),
  problem = CASE WHEN excluded.failed_at > coalesce(s.failed_at, '-infinity')
    THEN excluded.problem ELSE s.problem END
WHERE excluded.succeeded_at > coalesce(s.succeeded_at, '-infinity') + interval '3 seconds'
  OR excluded.failed_at > coalesce(s.failed_at, '-infinity') + interval '3 seconds'
""")


class PostgresSightings:
    """Port SightingBook."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def write(self, glimpses: Sequence[Glimpse]) -> None:
        """Note what was seen; what is known to be newer stays."""
        rows = msgspec.json.encode([asdict(glimpse) for glimpse in glimpses]).decode()
        with begin(self._engine) as connection:
            connection.execute(_WRITE, {"rows": rows})

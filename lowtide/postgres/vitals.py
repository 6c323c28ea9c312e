"""The read model behind alerts and dashboards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.domain.ids import BatchId
from lowtide.domain.pools import Depth, Pool
from lowtide.domain.vitals import RiskyBatch, TenantVitals, Vitals
from lowtide.postgres.connections import begin
from lowtide.postgres.timetable import BATCHES

if TYPE_CHECKING:
    from sqlalchemy import Engine

# An alert needs no more of either: beyond these, "many" is the news.
MOST_COUNTED = 10_000
MOST_RISKY = 50

TENANTS = f"""
SELECT t.name, count(*) AS batches, count(*) FILTER (WHERE b.at_risk) AS at_risk,
  sum(l.spot)::bigint AS spot, sum(l.dedicated)::bigint AS dedicated,
  sum(l.running_spot)::bigint AS running_spot,
  sum(l.running_dedicated)::bigint AS running_dedicated,
  extract(epoch FROM now() - min(f.spot))::float8 AS oldest_spot,
  extract(epoch FROM now() - min(f.dedicated))::float8 AS oldest_dedicated
FROM ({BATCHES}) l JOIN batches b ON b.id = l.id JOIN tenants t ON t.id = b.tenant_id
CROSS JOIN LATERAL (SELECT
  (SELECT available_at FROM queue WHERE pool = 'spot' AND batch_id = b.id
   ORDER BY available_at LIMIT 1) AS spot,
  (SELECT available_at FROM queue WHERE pool = 'dedicated' AND batch_id = b.id
   ORDER BY available_at LIMIT 1) AS dedicated) f
GROUP BY t.name
"""  # noqa: S608 - two constants of ours
RISKY = """
SELECT b.id, t.name, extract(epoch FROM b.deadline - now())::float8 AS left
FROM batches b JOIN tenants t ON t.id = b.tenant_id
WHERE b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling') AND b.at_risk
ORDER BY b.deadline LIMIT :most
"""
# Ids are ordered by time.
EVENTS = """
SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox LIMIT :most) o) AS events,
  (SELECT extract(epoch FROM now() - created_at)::float8 FROM outbox ORDER BY id LIMIT 1) AS oldest
"""
LETTERS = """
SELECT t.name, l.letters FROM tenants t CROSS JOIN LATERAL (
  SELECT count(*) AS letters FROM (
    SELECT 1 FROM dead_letters WHERE tenant_id = t.id AND state = 'open' LIMIT :most) d) l
WHERE l.letters > 0
"""
WORKERS = "SELECT pool, count(*) AS workers FROM workers WHERE expires_at > now() GROUP BY pool"

_TENANTS, _RISKY, _EVENTS, _LETTERS, _WORKERS = map(
    text, (TENANTS, RISKY, EVENTS, LETTERS, WORKERS)
)


class PostgresVitals:
    """Reads the vitals, as a role that sees every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Vitals:
        """Look once; raises Unavailable."""
        with begin(self._engine) as connection:
            events = connection.execute(_EVENTS, {"most": MOST_COUNTED}).one()
            return Vitals(
                tenants=tuple(_tenant(row) for row in connection.execute(_TENANTS)),
                risky=tuple(
                    RiskyBatch(row.name, BatchId(row.id), row.left)
                    for row in connection.execute(_RISKY, {"most": MOST_RISKY})
                ),
                workers={Pool(row.pool): row.workers for row in connection.execute(_WORKERS)},
                open_letters={
                    row.name: row.letters
                    for row in connection.execute(_LETTERS, {"most": MOST_COUNTED})
                },
                events=events.events,
                oldest_event=max(events.oldest or 0.0, 0.0),
            )


def _tenant(row: Any) -> TenantVitals:
    oldest = {Pool.SPOT: row.oldest_spot, Pool.DEDICATED: row.oldest_dedicated}
    return TenantVitals(
        name=row.name,
        batches=row.batches,
        at_risk=row.at_risk,
        depths={
            Pool.SPOT: Depth(row.spot, row.running_spot),
            Pool.DEDICATED: Depth(row.dedicated, row.running_dedicated),
        },
        # A line that waits out a delay is not waiting for a worker.
        oldest={pool: max(age, 0.0) for pool, age in oldest.items() if age is not None},
    )

"""The read model behind queues and health: every tenant's lines, and the pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from lowtide.domain.errors import Unavailable
from lowtide.domain.ids import BatchId, TenantId
from lowtide.domain.operations import Operations, TenantLoad, Work
from lowtide.domain.pools import Pool
from lowtide.postgres.connections import begin
from lowtide.postgres.pools import read_pauses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

LOADS = """
SELECT l.pool, l.tenant_id, coalesce(t.name, cast(l.tenant_id AS text)) AS name,
  sum(l.queued)::bigint AS queued, sum(l.running)::bigint AS running, min(l.oldest) AS oldest
FROM (
  SELECT pool, tenant_id, count(*) AS queued, 0 AS running, min(queued_at) AS oldest
  FROM queue GROUP BY pool, tenant_id
  UNION ALL
  SELECT pool, tenant_id, 0, count(*), NULL FROM claims GROUP BY pool, tenant_id
) l LEFT JOIN tenants t ON t.id = l.tenant_id
GROUP BY l.pool, l.tenant_id, t.name
ORDER BY name, l.pool DESC
"""
# A batch's last lines count too, so that it is read for a while after its end.
WORK = """
SELECT t.batch_id, t.pool, sum(t.completed + t.failed)::bigint AS done,
  sum(t.interrupted)::bigint AS interrupted
FROM (
  SELECT id FROM batches
  WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
  UNION ALL
  SELECT id FROM batches WHERE status IN ('completed', 'failed', 'expired', 'cancelled')
    AND coalesce(completed_at, failed_at, expired_at, cancelled_at) > now() - interval '2 minutes'
) b CROSS JOIN LATERAL (
  SELECT batch_id, pool, completed, failed, interrupted FROM tallies
  WHERE batch_id = b.id OFFSET 0) t
GROUP BY t.batch_id, t.pool
"""
STATE = """
SELECT now() AS at, w.planned, w.ticked_at, o.events_waiting, o.oldest_event,
  current_setting('server_version') AS server_version,
  (SELECT min(version_num) FROM alembic_version) AS schema_version
FROM (SELECT max(replicas) AS planned, max(at) AS ticked_at FROM wanted_replicas) w,
  (SELECT count(*) AS events_waiting, min(created_at) AS oldest_event FROM outbox) o
"""
WORKERS = "SELECT pool, count(*) AS workers FROM workers WHERE expires_at > now() GROUP BY pool"

_LOADS, _WORK, _STATE, _WORKERS = map(text, (LOADS, WORK, STATE, WORKERS))


class PostgresOperations:
    """Port OperationsSource, for a role that sees every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Operations:
        """Return how all tenants' queues and the pools stand; raises Unavailable."""
        try:
            with begin(self._engine) as connection:
                return _read(connection)
        except SQLAlchemyError as error:
            # A page that watches must outlive a schema that is not there yet or a refused password.
            raise Unavailable("The database answers, but refuses to be read.") from error


def _read(connection: Connection) -> Operations:
    def rows(statement: Any) -> Sequence[Any]:
        return connection.execute(statement).all()

    state = connection.execute(_STATE).one()
    return Operations(
        at=state.at,
        loads=tuple(
            TenantLoad(
                TenantId(row.tenant_id),
                row.name,
                Pool(row.pool),
                row.queued,
                row.running,
                row.oldest,
            )
            for row in rows(_LOADS)
        ),
        work=tuple(
            Work(BatchId(row.batch_id), Pool(row.pool), row.done, row.interrupted)
            for row in rows(_WORK)
        ),
        workers={Pool(row.pool): row.workers for row in rows(_WORKERS)},
        planned=state.planned,
        ticked_at=state.ticked_at,
        events_waiting=state.events_waiting,
        oldest_event=state.oldest_event,
        server_version=state.server_version.split()[0],
        schema_version=state.schema_version or "none",
        pauses=read_pauses(connection),
    )

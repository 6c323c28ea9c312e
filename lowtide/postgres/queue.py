"""The queue: claim, settle and give back lines, fenced by leases.

Lock order, so that no two operations wait for each other: claims before batches before outbox. What
takes a batch first (cancel, expire) skips claims that somebody else holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from lowtide.domain.claims import Claim, Settled
from lowtide.domain.ids import BatchId, LeaseId
from lowtide.postgres.connections import begin
from lowtide.postgres.draining import note_drained

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from lowtide.domain.claims import Finished, Returned
    from lowtide.domain.pools import Pool

_OPEN = text("""
INSERT INTO workers (id, pool, name, expires_at)
VALUES (:lease, :pool, :name, now() + make_interval(secs => :duration))
""")
_RENEW = text("""
UPDATE workers SET heartbeat_at = now(), expires_at = now() + make_interval(secs => :duration)
WHERE id = :lease
""")
_CLOSE = text("DELETE FROM workers WHERE id = :lease")

# KEY SHARE on the worker's row: a lease cannot be reaped while it is taking lines, nor take lines
# once it was. Whatever the planner's estimates, the ARRAY form keeps the plan a Tid Scan, and OFFSET 0
# keeps the join a look-up of each line by key.
CLAIM = """
WITH lease AS MATERIALIZED (
  SELECT id FROM workers WHERE id = :lease FOR KEY SHARE
), taken AS (
  DELETE FROM queue WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM queue
    WHERE pool = :pool AND available_at <= now() AND EXISTS (SELECT 1 FROM lease)
    ORDER BY deadline, batch_id, line
    LIMIT :lines FOR UPDATE SKIP LOCKED))
  RETURNING *
), held AS (
  INSERT INTO claims (batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, line, attempts,
    interruptions, lost_leases, escalated, pool)
  SELECT batch_id, tenant_id, :lease, deadline, queued_at, now(), line, attempts, interruptions,
    lost_leases, escalated, pool FROM taken
)
SELECT t.batch_id, t.line, t.attempts, t.interruptions, r.start, r.length, b.endpoint, b.input_key
FROM taken t
JOIN batches b ON b.id = t.batch_id
CROSS JOIN LATERAL (
  SELECT start, length FROM requests WHERE batch_id = t.batch_id AND line = t.line OFFSET 0) r
ORDER BY t.deadline, t.batch_id, t.line
"""
_CLAIM = text(CLAIM)

_FINISH = text("""
WITH given AS (
  SELECT * FROM json_to_recordset(cast(:rows AS json)) AS g (
    batch uuid, line integer, succeeded boolean, attempts smallint, input_tokens integer,
    output_tokens integer, status_code smallint, request_id text, body text, error_code text,
    error_message text, dead_letter boolean)
), mine AS (
  DELETE FROM claims c USING given g
  WHERE c.batch_id = g.batch AND c.line = g.line AND c.lease_id = :lease
  RETURNING c.batch_id, c.line, c.tenant_id, c.pool, c.claimed_at, c.interruptions, c.escalated,
    g.succeeded, g.attempts, g.input_tokens, g.output_tokens, g.status_code, g.request_id, g.body,
    g.error_code, g.error_message, g.dead_letter
), stored AS (
  INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
    output_tokens, status_code, attempts, interruptions, succeeded, escalated, dead_lettered, pool,
    request_id, body, error_code, error_message)
  SELECT batch_id, tenant_id, :lease, claimed_at, now(), line, input_tokens, output_tokens,
    status_code, attempts, interruptions, succeeded, escalated, dead_letter, pool, request_id, body,
    error_code, error_message FROM mine
), buried AS (
  INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, error_code, error_message)
  SELECT batch_id, line, tenant_id, attempts, error_code, error_message FROM mine WHERE dead_letter
), noted AS (
  INSERT INTO request_events (tenant_id, batch_id, line, kind, pool, lease_id, detail)
  SELECT tenant_id, batch_id, line, 'dead_lettered', pool, :lease,
    coalesce(error_message, 'HTTP ' || status_code) FROM mine WHERE dead_letter
), tallied AS (
  INSERT INTO tallies AS t (batch_id, pool, lease_id, tenant_id, completed, failed, input_tokens,
    output_tokens)
  SELECT batch_id, pool, :lease, tenant_id, count(*) FILTER (WHERE succeeded),
    count(*) FILTER (WHERE NOT succeeded), sum(input_tokens), sum(output_tokens)
  FROM mine GROUP BY batch_id, pool, tenant_id
  ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET
    completed = t.completed + excluded.completed, failed = t.failed + excluded.failed,
    input_tokens = t.input_tokens + excluded.input_tokens,
    output_tokens = t.output_tokens + excluded.output_tokens
)
SELECT batch_id, count(*) AS lines FROM mine GROUP BY batch_id
""")

_TAKE_BACK = text("""
WITH given AS (
  SELECT * FROM json_to_recordset(cast(:rows AS json)) AS g (
    batch uuid, line integer, reason text, delay double precision, failed boolean,
    interrupted boolean)
)
DELETE FROM claims c USING given g
WHERE c.batch_id = g.batch AND c.line = g.line AND c.lease_id = :lease
RETURNING c.batch_id, c.tenant_id, c.lease_id, c.deadline, c.queued_at, c.line, c.attempts,
  c.interruptions, 0 AS lost_leases, c.escalated, c.pool, g.reason, g.delay, g.failed, g.interrupted
""")
_TAKE_BACK_ALL = text("""
DELETE FROM claims WHERE lease_id = :lease
RETURNING batch_id, tenant_id, lease_id, deadline, queued_at, line, attempts, interruptions,
  0 AS lost_leases, escalated, pool, '' AS reason, 0 AS delay, false AS failed,
  false AS interrupted
""")

# SHARE on the batch: either cancelling waits and then drops what is queued here, or it came first
# and the line is not queued again.
_LOCK_OPEN = text("""
SELECT id FROM batches WHERE id = ANY(:batches) AND status = 'in_progress' AND drained_at IS NULL AND NOT expiring
ORDER BY id FOR SHARE
""")
_REQUEUE = text("""
WITH given AS (
  SELECT * FROM json_to_recordset(cast(:rows AS json)) AS g (
    batch_id uuid, tenant_id uuid, lease_id uuid, deadline timestamptz, queued_at timestamptz,
    line integer, attempts smallint, interruptions smallint, lost_leases smallint,
    escalated boolean, pool text, reason text, delay double precision, failed boolean,
    interrupted boolean)
), queued AS (
  INSERT INTO queue (batch_id, tenant_id, deadline, available_at, queued_at, line, attempts,
    interruptions, lost_leases, escalated, pool)
  SELECT batch_id, tenant_id, deadline, now() + make_interval(secs => delay), queued_at, line,
    attempts + failed::integer, least(interruptions + interrupted::integer, 32767), lost_leases,
    escalated, pool
  FROM given WHERE batch_id = ANY(:open)
), noted AS (
  INSERT INTO request_events (tenant_id, batch_id, line, kind, pool, lease_id, detail)
  SELECT tenant_id, batch_id, line, CASE WHEN failed THEN 'retried' ELSE 'interrupted' END, pool,
    lease_id, reason FROM given WHERE failed OR interrupted
)
INSERT INTO tallies AS t (batch_id, pool, lease_id, tenant_id, interrupted, retried)
SELECT batch_id, pool, lease_id, tenant_id, count(*) FILTER (WHERE interrupted),
  count(*) FILTER (WHERE failed)
FROM given WHERE failed OR interrupted GROUP BY batch_id, pool, lease_id, tenant_id
ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET
  interrupted = t.interrupted + excluded.interrupted, retried = t.retried + excluded.retried
""")

_encode = msgspec.json.Encoder().encode


class PostgresQueue:
    """Port Queue. Only the database's clock decides leases, delays and deadlines."""

    def __init__(
        self, engine: Engine, *, new_id: Callable[[], UUID], lease_duration: float
    ) -> None:
        self._engine = engine
        self._new_id = new_id
        self._lease_duration = lease_duration

    def open_lease(self, pool: Pool, worker: str) -> LeaseId:
        """Register a worker."""
        lease = LeaseId(self._new_id())
        with begin(self._engine) as connection:
            connection.execute(
                _OPEN,
                {
                    "lease": lease,
                    "pool": pool.value,
                    "name": worker,
                    "duration": self._lease_duration,
                },
            )
        return lease

    def renew(self, lease: LeaseId) -> bool:
        """Extend the lease; False when it was given away, with all its lines."""
        with begin(self._engine) as connection:
            parameters = {"lease": lease, "duration": self._lease_duration}
            return connection.execute(_RENEW, parameters).rowcount == 1

    def claim(self, lease: LeaseId, pool: Pool, lines: int) -> Sequence[Claim]:
        """Take up to `lines` of the most urgent lines; none when the lease is gone."""
        with begin(self._engine) as connection:
            rows = connection.execute(
                _CLAIM, {"lease": lease, "pool": pool.value, "lines": lines}
            ).all()
        return [
            Claim(
                batch=BatchId(row.batch_id),
                line=row.line,
                endpoint=row.endpoint,
                input_key=row.input_key,
                start=row.start,
                length=row.length,
                attempts=row.attempts,
                interruptions=row.interruptions,
            )
            for row in rows
        ]

    def settle(
        self, lease: LeaseId, finished: Sequence[Finished], returned: Sequence[Returned]
    ) -> Settled:
        """End or give back lines in one transaction; lines that are not the lease's are skipped."""
        with begin(self._engine) as connection:
            touched: dict[BatchId, int] = {}
            if finished:
                touched = _finish(connection, lease, finished)
            given_back = 0
            if returned:
                rows = connection.execute(
                    _TAKE_BACK, {"lease": lease, "rows": _encode(returned).decode()}
                ).all()
                given_back = len(rows)
                touched = dict.fromkeys(requeue(connection, rows), 0) | touched
            drained = note_drained(connection, list(touched), self._new_id)
        return Settled(sum(touched.values()), given_back, drained)

    def close_lease(self, lease: LeaseId) -> None:
        """Leave; lines still held go back to the queue."""
        with begin(self._engine) as connection:
            connection.execute(_CLOSE, {"lease": lease})
            rows = connection.execute(_TAKE_BACK_ALL, {"lease": lease}).all()
            note_drained(connection, requeue(connection, rows), self._new_id)

    def ready(self) -> None:
        """Raise when the database does not answer."""
        with self._engine.connect() as connection:
            connection.execute(text("SELECT 1"))


def _finish(
    connection: Connection, lease: LeaseId, finished: Sequence[Finished]
) -> dict[BatchId, int]:
    rows = [
        {
            "batch": line.batch,
            "line": line.line,
            "succeeded": line.succeeded,
            "attempts": line.attempts,
            "input_tokens": line.usage.input_tokens,
            "output_tokens": line.usage.output_tokens,
            "status_code": line.status_code,
            "request_id": line.request_id,
            "body": line.body,
            "error_code": line.error_code,
            "error_message": line.error_message,
            "dead_letter": line.dead_letter,
        }
        for line in finished
    ]
    touched = connection.execute(_FINISH, {"lease": lease, "rows": _encode(rows).decode()})
    return {BatchId(row.batch_id): row.lines for row in touched}


def requeue(connection: Connection, rows: Sequence[Any]) -> list[BatchId]:
    """Queue lines that were taken out of claims, unless their batch is ending.

    Returns the batches that are ending, which this may have drained.
    """
    if not rows:
        return []
    batches = sorted({row.batch_id for row in rows})
    still_open = _lock_open(connection, batches)
    encoded = _encode([row._asdict() for row in rows]).decode()
    connection.execute(_REQUEUE, {"rows": encoded, "open": list(still_open)})
    return [BatchId(batch) for batch in batches if batch not in set(still_open)]


def _lock_open(connection: Connection, batches: Sequence[UUID]) -> Sequence[UUID]:
    """Return which batches are open, locked so that none ends before this transaction does.

    A batch that ended while its lock was waited for is locked too, though not returned. Two that
    share such a lock would wait for each other in `note_drained`, so it is let go.
    """
    while batches:
        attempt = connection.begin_nested()
        found = connection.execute(_LOCK_OPEN, {"batches": list(batches)}).scalars().all()
        if len(found) == len(batches):
            attempt.commit()
            return found
        attempt.rollback()
        batches = found
    return ()

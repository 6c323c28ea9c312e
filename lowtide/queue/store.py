"""The queue: open leases, settle and release requests, fenced by leases."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from lowtide.batches.metrics import requests_ended
from lowtide.batches.model import BatchStatus, outcome_without_result
from lowtide.core.ids import BatchId, LeaseId
from lowtide.core.pools import DEFAULT_FLEET, FleetPool
from lowtide.database.connections import begin
from lowtide.database.prepared import Encoded, hot
from lowtide.queue.claiming import Claiming
from lowtide.queue.claims import Settled
from lowtide.queue.draining import note_drained

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from lowtide.core.pools import Pool
    from lowtide.engines.breaker import BreakerState
    from lowtide.queue.claims import Claim, Finished, Returned


STORM = 5
"""Min leases lost at once that count as a storm."""


def is_storm(lost: int, living: int) -> bool:
    """Return whether so many leases were lost at once that capacity is to blame, not a request.

    A request that kills its worker costs one lease at a time. A storm may bring a request to the
    verge of being dead-lettered, never past it.
    """
    return lost >= STORM and lost >= living


_OPEN = text("""
WITH known AS (
  INSERT INTO fleets (name) SELECT :fleet WHERE NOT EXISTS (SELECT FROM fleets WHERE name = :fleet)
  ON CONFLICT DO NOTHING
)
INSERT INTO workers (id, fleet, pool, name, expires_at)
VALUES (:lease, :fleet, :pool, :name, now() + make_interval(secs => :duration))
""")
_RENEW = text("""
UPDATE workers SET heartbeat_at = now(), expires_at = now() + make_interval(secs => :duration)
WHERE id = :lease
""")
_REPORT_ENGINE = text("""
UPDATE workers SET engine_reason = :reason,
  engine_since = CASE WHEN engine_state = :state THEN engine_since ELSE now() END,
  engine_state = :state
WHERE id = :lease
""")
_CLOSE = text("DELETE FROM workers WHERE id = :lease")

# Each request is looked up by key (LATERAL, OFFSET 0): the statistics of a table that fills and
# empties all the time are poor, and a plain join may read all of it, dead rows included.
FINISH = """
WITH given AS MATERIALIZED (
  SELECT * FROM json_to_recordset(cast(:rows AS json)) AS g (
    batch uuid, line integer, succeeded boolean, attempts smallint, input_tokens integer,
    output_tokens integer, replica_seconds double precision, status_code smallint, request_id text,
    body text, error_code text, error_message text, dead_letter boolean, cached_tokens integer,
    reasoning_tokens integer)
), mine AS (
  DELETE FROM claims WHERE ctid = ANY(ARRAY(
    SELECT c.ctid FROM given g CROSS JOIN LATERAL (
      SELECT ctid FROM claims
      WHERE batch_id = g.batch AND line = g.line AND lease_id = :lease OFFSET 0) c))
  RETURNING batch_id, line, tenant_id, fleet, pool, claimed_at, deadline, interruptions, escalated
), ended AS MATERIALIZED (
  SELECT m.batch_id, m.line, m.tenant_id, m.fleet, m.pool, m.claimed_at, m.deadline, m.interruptions,
    m.escalated, g.succeeded, g.attempts, g.input_tokens, g.output_tokens, g.replica_seconds,
    g.status_code, g.request_id, coalesce(cast(:body AS text), g.body) AS body, g.error_code,
    g.error_message, g.dead_letter, g.cached_tokens, g.reasoning_tokens
  FROM mine m JOIN given g ON g.batch = m.batch_id AND g.line = m.line
), stored AS (
  INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
    output_tokens, status_code, attempts, interruptions, succeeded, escalated, dead_lettered, pool,
    request_id, body, error_code, error_message, model_revision)
  SELECT batch_id, tenant_id, :lease, claimed_at, now(), line, input_tokens, output_tokens,
    status_code, attempts, interruptions, succeeded, escalated, dead_letter, pool, request_id, body,
    error_code, error_message,
    CASE WHEN status_code IS NOT NULL THEN cast(:model_revision AS text) END FROM ended
), buried AS (
  INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, error_code, error_message)
  SELECT batch_id, line, tenant_id, attempts, error_code, error_message
  FROM ended WHERE dead_letter
), noted AS (
  INSERT INTO request_events (tenant_id, batch_id, line, kind, pool, lease_id, detail)
  SELECT tenant_id, batch_id, line, 'dead_lettered', pool, :lease,
    coalesce(error_message, 'HTTP ' || status_code) FROM ended WHERE dead_letter
), tallied AS (
  INSERT INTO tallies AS t (batch_id, fleet, pool, lease_id, tenant_id, completed, failed,
    dead_lettered, input_tokens, output_tokens, cached_tokens, reasoning_tokens, replica_seconds,
    running_seconds)
  SELECT batch_id, fleet, pool, :lease, tenant_id, count(*) FILTER (WHERE succeeded),
    count(*) FILTER (WHERE NOT succeeded), count(*) FILTER (WHERE dead_letter), sum(input_tokens),
    sum(output_tokens), sum(cached_tokens), sum(reasoning_tokens), sum(replica_seconds),
    sum(extract(epoch FROM now() - claimed_at))
  FROM ended GROUP BY batch_id, fleet, pool, tenant_id ORDER BY batch_id, pool
  ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET
    completed = t.completed + excluded.completed, failed = t.failed + excluded.failed,
    dead_lettered = t.dead_lettered + excluded.dead_lettered,
    input_tokens = t.input_tokens + excluded.input_tokens,
    output_tokens = t.output_tokens + excluded.output_tokens,
    cached_tokens = t.cached_tokens + excluded.cached_tokens,
    reasoning_tokens = t.reasoning_tokens + excluded.reasoning_tokens,
    replica_seconds = t.replica_seconds + excluded.replica_seconds,
    running_seconds = t.running_seconds + excluded.running_seconds
), charged AS (
  INSERT INTO usage_days AS u (tenant_id, day, currency, pool, shard, requests, input_tokens,
    output_tokens, cost, dedicated_cost)
  SELECT e.tenant_id, (now() AT TIME ZONE 'UTC')::date, b.currency, e.pool, :shard, sum(e.requests),
    sum(e.input_tokens), sum(e.output_tokens),
    sum(e.hours * CASE e.pool WHEN 'spot' THEN b.spot ELSE b.dedicated END),
    sum(e.hours * b.dedicated)
  FROM (
    SELECT batch_id, fleet, pool, tenant_id, count(*) AS requests, sum(input_tokens) AS input_tokens,
      sum(output_tokens) AS output_tokens, sum(replica_seconds) / 3600 AS hours
    FROM ended GROUP BY batch_id, fleet, pool, tenant_id) e
  CROSS JOIN LATERAL (
    SELECT currency, coalesce(p.spot_price, o.spot_price) AS spot,
      coalesce(p.dedicated_price, o.dedicated_price) AS dedicated
    FROM batches o
    LEFT JOIN batch_fleets p ON o.fleet IS NULL AND p.batch_id = o.id AND p.fleet = e.fleet
    WHERE o.id = e.batch_id OFFSET 0) b
  GROUP BY e.tenant_id, b.currency, e.pool ORDER BY e.tenant_id, b.currency, e.pool
  ON CONFLICT (tenant_id, day, currency, pool, shard) DO UPDATE SET
    requests = u.requests + excluded.requests,
    input_tokens = u.input_tokens + excluded.input_tokens,
    output_tokens = u.output_tokens + excluded.output_tokens, cost = u.cost + excluded.cost,
    dedicated_cost = u.dedicated_cost + excluded.dedicated_cost
)
SELECT batch_id, count(*) AS lines, count(*) FILTER (WHERE succeeded) AS completed,
  count(*) FILTER (WHERE now() <= deadline) AS in_time
FROM ended GROUP BY batch_id
"""
_FINISH = hot(FINISH)

TAKE_BACK = """
WITH given AS MATERIALIZED (
  SELECT * FROM json_to_recordset(cast(:rows AS json)) AS g (
    batch uuid, line integer, reason text, delay double precision, failed boolean,
    interrupted boolean)
), mine AS (
  DELETE FROM claims WHERE ctid = ANY(ARRAY(
    SELECT c.ctid FROM given g CROSS JOIN LATERAL (
      SELECT ctid FROM claims
      WHERE batch_id = g.batch AND line = g.line AND lease_id = :lease OFFSET 0) c))
  RETURNING batch_id, tenant_id, lease_id, deadline, queued_at, line, attempts, interruptions,
    escalated, fleet, pool
)
SELECT m.*, 0 AS lost_leases, g.reason, g.delay, g.failed, g.interrupted
FROM mine m JOIN given g ON g.batch = m.batch_id AND g.line = m.line
"""
_TAKE_BACK = hot(TAKE_BACK)
_TAKE_BACK_ALL = text("""
DELETE FROM claims WHERE lease_id = :lease
RETURNING batch_id, tenant_id, lease_id, deadline, queued_at, line, attempts, interruptions,
  0 AS lost_leases, escalated, fleet, pool, '' AS reason, 0 AS delay, false AS failed,
  false AS interrupted
""")

# SHARE on the batch: either a cancellation waits and then drops what is queued here, or it came
# first and the request is not queued again.
_LOCK_OPEN = hot("""
SELECT id FROM batches WHERE id = ANY(:batches) AND status = 'in_progress' AND drained_at IS NULL AND NOT expiring
ORDER BY id FOR SHARE
""")
_REQUEUE = hot("""
WITH given AS (
  SELECT * FROM json_to_recordset(cast(:rows AS json)) AS g (
    batch_id uuid, tenant_id uuid, lease_id uuid, deadline timestamptz, queued_at timestamptz,
    line integer, attempts smallint, interruptions smallint, lost_leases smallint,
    escalated boolean, fleet text, pool text, reason text, delay double precision, failed boolean,
    interrupted boolean, revoked text, bound jsonb)
), queued AS (
  INSERT INTO queue (batch_id, tenant_id, deadline, available_at, queued_at, line, attempts,
    interruptions, lost_leases, escalated, fleet, pool)
  SELECT batch_id, tenant_id, deadline, now() + make_interval(secs => delay), queued_at, line,
    attempts + failed::integer, least(interruptions + interrupted::integer, 32767), lost_leases,
    escalated, fleet, pool
  FROM given WHERE batch_id = ANY(:open)
), noted AS (
  INSERT INTO request_events (tenant_id, batch_id, line, kind, pool, lease_id, detail, reason, bound)
  SELECT tenant_id, batch_id, line,
    CASE WHEN failed THEN 'retried' WHEN revoked IS NOT NULL THEN 'revoked' ELSE 'interrupted' END,
    pool, lease_id, reason, revoked, bound FROM given WHERE failed OR interrupted
)
INSERT INTO tallies AS t (batch_id, fleet, pool, lease_id, tenant_id, interrupted, retried)
SELECT batch_id, fleet, pool, lease_id, tenant_id, count(*) FILTER (WHERE interrupted),
  count(*) FILTER (WHERE failed)
FROM given WHERE failed OR interrupted GROUP BY batch_id, fleet, pool, lease_id, tenant_id
ORDER BY batch_id, pool, lease_id
ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET
  interrupted = t.interrupted + excluded.interrupted, retried = t.retried + excluded.retried
""")

_STATUSES = text("SELECT id, status FROM batches WHERE id = ANY(:batches)")

_encode = msgspec.json.Encoder().encode
LONGEST_REASON = 1000
_USAGE_SHARDS = 16
"""Rows that the settling workers of a tenant share, each locked until its settlement commits."""


class QueueStore:
    """The queue of a fleet in the database, whose clock alone decides leases, delays and deadlines.

    `model_revision` is stored with every answer, unless it is empty.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        new_id: Callable[[], UUID],
        lease_duration: float,
        fleet: str = DEFAULT_FLEET,
        model_revision: str = "",
    ) -> None:
        self._engine = engine
        self._fleet = fleet
        self._model_revision = model_revision or None
        self._new_id = new_id
        self._lease_duration = lease_duration
        self._claiming: dict[LeaseId, Claiming] = {}

    def open_lease(self, pool: Pool, worker: str) -> LeaseId:
        """Register a worker and return its lease."""
        lease = LeaseId(self._new_id())
        with begin(self._engine) as connection:
            connection.execute(
                _OPEN,
                {
                    "lease": lease,
                    "fleet": self._fleet,
                    "pool": pool.value,
                    "name": worker,
                    "duration": self._lease_duration,
                },
            )
        return lease

    def renew(self, lease: LeaseId) -> bool:
        """Extend the lease; return False if it is lost, with all its requests."""
        with begin(self._engine) as connection:
            parameters = {"lease": lease, "duration": self._lease_duration}
            renewed = connection.execute(_RENEW, parameters).rowcount == 1
        if not renewed:
            self._claiming.pop(lease, None)
        return renewed

    def claim(
        self, lease: LeaseId, pool: Pool, lines: int, without: frozenset[str] = frozenset()
    ) -> Sequence[Claim]:
        """Claim up to `lines` of the most urgent requests, of no model in `without`.

        Claims none if the lease is gone or the pool is paused.
        """
        if lease not in self._claiming:
            self._claiming[lease] = Claiming(self._engine, FleetPool(self._fleet, pool))
        return self._claiming[lease].claim(lease, lines, without)

    def settle(
        self, lease: LeaseId, finished: Sequence[Finished], returned: Sequence[Returned]
    ) -> Settled:
        """Settle and release requests in one transaction; those not under the lease are skipped."""
        with begin(self._engine) as connection:
            settled_rows = self._finish(connection, lease, finished) if finished else ()
            batches = {BatchId(row.batch_id): None for row in settled_rows}
            released = 0
            if returned:
                rows = connection.execute(
                    _TAKE_BACK, {"lease": lease, "rows": _encode(returned).decode()}
                ).all()
                released = len(rows)
                batches |= dict.fromkeys(requeue(connection, rows))
            claiming = self._claiming.get(lease)
            marks = claiming.marks if claiming else {}
            drained = note_drained(connection, list(batches), self._new_id, marks)
        return Settled(
            finished=sum(row.lines for row in settled_rows),
            completed=sum(row.completed for row in settled_rows),
            in_time=sum(row.in_time for row in settled_rows),
            returned=released,
            drained=drained,
        )

    def _finish(
        self, connection: Connection, lease: LeaseId, finished: Sequence[Finished]
    ) -> Sequence[Any]:
        # A single body is passed outside the JSON, which would escape it and copy it several times.
        is_single = len(finished) == 1
        body = finished[0].body if is_single else None
        rows = [
            {
                "batch": request.batch,
                "line": request.line,
                "succeeded": request.succeeded,
                "attempts": request.attempts,
                "input_tokens": request.usage.input_tokens,
                "output_tokens": request.usage.output_tokens,
                "cached_tokens": request.usage.cached_tokens,
                "reasoning_tokens": request.usage.reasoning_tokens,
                "replica_seconds": request.replica_seconds,
                "status_code": request.status_code,
                "request_id": request.request_id,
                "body": None if is_single or request.body is None else request.body.decode(),
                "error_code": request.error_code,
                "error_message": request.error_message,
                "dead_letter": request.dead_letter,
            }
            for request in finished
        ]
        parameters = {
            "lease": lease,
            "rows": Encoded(_encode(rows)),
            "body": None if body is None else Encoded(body),
            "model_revision": self._model_revision,
            "shard": lease.int % _USAGE_SHARDS,
        }
        return connection.execute(_FINISH, parameters).all()

    def report_engine(self, lease: LeaseId, state: BreakerState, reason: str) -> None:
        """Record the state of the worker's engine."""
        with begin(self._engine) as connection:
            parameters = {"lease": lease, "state": state.value, "reason": reason[:LONGEST_REASON]}
            connection.execute(_REPORT_ENGINE, parameters)

    def close_lease(self, lease: LeaseId) -> None:
        """Close the lease and release the requests still claimed."""
        self._claiming.pop(lease, None)
        with begin(self._engine) as connection:
            connection.execute(_CLOSE, {"lease": lease})
            rows = connection.execute(_TAKE_BACK_ALL, {"lease": lease}).all()
            note_drained(connection, requeue(connection, rows), self._new_id)


def requeue(connection: Connection, rows: Sequence[Any]) -> list[BatchId]:
    """Requeue requests taken out of claims, unless their batch is ending.

    Returns the batches that are ending, which this may have drained.
    """
    if not rows:
        return []
    batches = sorted({row.batch_id for row in rows})
    open_batches = _lock_open(connection, batches)
    encoded = _encode([row._asdict() for row in rows]).decode()
    connection.execute(_REQUEUE, {"rows": encoded, "open": list(open_batches)})
    ending = set(batches) - set(open_batches)
    if ending:
        _count_dropped(connection, [row.batch_id for row in rows if row.batch_id in ending])
    return sorted(map(BatchId, ending))


def _count_dropped(connection: Connection, batch_of_each: Sequence[UUID]) -> None:
    """Count requests that are not queued again, by the batch of each."""
    requests = Counter(batch_of_each)
    statuses = connection.execute(_STATUSES, {"batches": list(requests)})
    for row in statuses:
        outcome = outcome_without_result(BatchStatus(row.status))
        requests_ended(outcome, requests[row.id])


def _lock_open(connection: Connection, batches: Sequence[UUID]) -> Sequence[UUID]:
    """Return the open batches, locked so that none ends before this transaction does.

    A batch that ended during the wait for its lock is locked too, though not returned. Two
    transactions that share such a lock would deadlock in `note_drained`, so it is released.
    """
    while batches:
        savepoint = connection.begin_nested()
        open_batches = connection.execute(_LOCK_OPEN, {"batches": list(batches)}).scalars().all()
        if len(open_batches) == len(batches):
            savepoint.commit()
            return open_batches
        savepoint.rollback()
        batches = open_batches
    return ()

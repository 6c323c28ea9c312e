"""The queue: open leases, settle and release requests, fenced by leases."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from lowtide.batches.metrics import requests_ended
from lowtide.batches.model import BatchStatus, outcome_without_result
from lowtide.core.ids import BatchId, LeaseId, format_batch_id
from lowtide.core.pools import DEFAULT_FLEET, FleetPool
from lowtide.core.runs import block_of, multirange
from lowtide.database.connections import begin
from lowtide.database.prepared import hot
from lowtide.queue.claiming import Claiming
from lowtide.queue.claims import Settled
from lowtide.queue.draining import note_drained, note_drained_segments
from lowtide.queue.settling import Ended, Partitions, finish, take_back

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
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

_TAKE_BACK_ALL = text("""
WITH removed AS (DELETE FROM claimed_runs WHERE lease_id = :lease RETURNING *)
SELECT batch_id, tenant_id, lease_id, deadline, queued_at, l.line, attempts, interruptions,
  0 AS lost_leases, escalated, fleet, pool, '' AS reason, 0 AS delay, false AS failed,
  false AS interrupted
FROM removed CROSS JOIN LATERAL lines_in(lines) l (line)
""")

# SHARE on the batch: either a cancellation waits and then drops what is queued here, or it came
# first and the request is not queued again.
_LOCK_OPEN = hot("""
SELECT id FROM batches WHERE id = ANY(:batches) AND status = 'in_progress' AND drained_at IS NULL AND NOT expiring
ORDER BY id FOR SHARE
""")
# Revoked requests wait for dedicated, and count as escalated.
_REQUEUE = hot("""
WITH given AS (
  SELECT * FROM json_to_recordset(cast(:runs AS json)) AS g (
    batch_id uuid, tenant_id uuid, lease_id uuid, deadline timestamptz, queued_at timestamptz,
    line integer, size integer, lines int4multirange, attempts smallint, interruptions smallint,
    lost_leases smallint, escalated boolean, fleet text, pool text, reason text,
    delay double precision, failed boolean, interrupted boolean, revoked text, bound jsonb)
), queued AS (
  INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, size, lines,
    attempts, interruptions, lost_leases, escalated, fleet, pool)
  SELECT batch_id, tenant_id, deadline, now() + make_interval(secs => delay), queued_at, line, size,
    lines, attempts + failed::integer, least(interruptions + interrupted::integer, 32767), lost_leases,
    escalated OR revoked IS NOT NULL, fleet,
    CASE WHEN revoked IS NULL THEN pool ELSE 'dedicated' END
  FROM given WHERE batch_id = ANY(:open)
), noted AS (
  INSERT INTO request_events (tenant_id, batch_id, line, kind, pool, lease_id, detail, reason, bound)
  SELECT tenant_id, batch_id, l.line,
    CASE WHEN failed THEN 'retried' WHEN revoked IS NOT NULL THEN 'revoked' ELSE 'interrupted' END,
    pool, lease_id, reason, revoked, bound
  FROM given CROSS JOIN LATERAL lines_in(lines) l (line) WHERE failed OR interrupted
), counted AS (
  SELECT batch_id, fleet, pool, lease_id, tenant_id,
    coalesce(sum(size) FILTER (WHERE interrupted), 0) AS interrupted,
    coalesce(sum(size) FILTER (WHERE failed), 0) AS retried, 0 AS escalated
  FROM given WHERE failed OR interrupted GROUP BY batch_id, fleet, pool, lease_id, tenant_id
  UNION ALL
  SELECT batch_id, fleet, 'dedicated', lease_of_fleet(fleet), tenant_id, 0, 0, sum(size)
  FROM given WHERE revoked IS NOT NULL AND batch_id = ANY(:open) GROUP BY batch_id, fleet, tenant_id
)
INSERT INTO tallies AS t (batch_id, fleet, pool, lease_id, tenant_id, interrupted, retried, escalated)
SELECT * FROM counted ORDER BY batch_id, pool, lease_id
ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET
  interrupted = t.interrupted + excluded.interrupted, retried = t.retried + excluded.retried,
  escalated = t.escalated + excluded.escalated
""")

_STATUSES = text("SELECT id, status FROM batches WHERE id = ANY(:batches)")

_encode = msgspec.json.Encoder().encode
LONGEST_REASON = 1000


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
        self._partitions = Partitions()

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
            # All claims are locked before any tally, as by whoever takes claims away: a revocation of
            # part of a run holds all of it.
            records = take_back(connection, lease, returned) if returned else []
            ended = (
                finish(connection, lease, finished, self._partitions, self._model_revision)
                if finished
                else Ended()
            )
            batches = dict.fromkeys(ended.lines) | dict.fromkeys(requeue(connection, records))
            claiming = self._claiming.get(lease)
            marks = claiming.marks if claiming else {}
            drained = note_drained(connection, list(batches), self._new_id, marks)
            over = {event.subject for event in drained}
            running = {
                batch: lines
                for batch, lines in ended.lines.items()
                if format_batch_id(batch) not in over
            }
            drained += note_drained_segments(connection, running, self._new_id)
        return Settled(
            finished=ended.finished,
            completed=ended.completed,
            in_time=ended.in_time,
            returned=len(records),
            drained=drained,
        )

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
            records = [row._asdict() for row in rows]
            note_drained(connection, requeue(connection, records), self._new_id)


def requeue(connection: Connection, records: Sequence[Mapping[str, Any]]) -> list[BatchId]:
    """Requeue requests taken out of claims, unless their batch is ending.

    Returns the batches that are ending, which this may have drained.
    """
    if not records:
        return []
    batches = sorted({record["batch_id"] for record in records})
    open_batches = _lock_open(connection, batches)
    runs = _encode(_runs(records)).decode()
    connection.execute(_REQUEUE, {"runs": runs, "open": list(open_batches)})
    ending = set(batches) - set(open_batches)
    if ending:
        dropped = [record["batch_id"] for record in records if record["batch_id"] in ending]
        _count_dropped(connection, dropped)
    return sorted(map(BatchId, ending))


def _runs(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join requests of a block that differ in nothing but their lines."""
    runs: dict[tuple[Any, ...], tuple[Mapping[str, Any], list[int]]] = {}
    for record in records:
        line = record["line"]
        # A bound is a JSON object; the requests of a batch that are revoked together share it.
        alike = (
            *(value for name, value in record.items() if name not in ("line", "bound")),
            block_of(line),
        )
        runs.setdefault(alike, (record, []))[1].append(line)
    return [
        {**record, "line": min(lines), "size": len(lines), "lines": multirange(lines)}
        for record, lines in runs.values()
    ]


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

"""The scheduler's repairs of expired leases, deadlines and stalled steps; all safe to repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import text

from lowtide.batches.metrics import requests_ended
from lowtide.batches.model import RequestStatus
from lowtide.batches.queued import drop_queued
from lowtide.core.ids import BatchId, TenantId, format_batch_id
from lowtide.core.pools import Pool
from lowtide.database.connections import begin
from lowtide.events.model import EventType, batch_event, segment_event
from lowtide.events.outbox import add_event, trace_of
from lowtide.objects.data_keys import destroy_unused_keys
from lowtide.objects.names import data_key_of
from lowtide.planning.state import SweepResult
from lowtide.queue.draining import note_drained
from lowtide.queue.store import is_storm, requeue
from lowtide.tenants import audit, sign_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine


_EXPIRE = text("""
UPDATE batches SET expiring = true
WHERE status = 'in_progress' AND NOT expiring AND drained_at IS NULL AND deadline <= now()
""")
# Those of earlier sweeps, too: a run of which some requests were just being settled kept the others.
_EXPIRING = text("""
SELECT id, risk_reason IS NOT DISTINCT FROM 'quota_used_up' AS held FROM batches
WHERE status = 'in_progress' AND expiring AND drained_at IS NULL
ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")
_CANCEL_DUE = text("""
SELECT id FROM batches WHERE status = 'cancelling' AND drained_at IS NULL
  AND cancelling_at <= now() - make_interval(secs => :grace)
ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")
# Runs being settled right now are left to their worker, which checks for a drained batch too, and
# what is left of them to the next sweep.
_DROP_RUNNING = text("""
WITH dropped AS (
  DELETE FROM claimed_runs WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM claimed_runs WHERE batch_id = ANY(:batches) FOR UPDATE SKIP LOCKED))
  RETURNING size
)
SELECT coalesce(sum(size), 0)::bigint FROM dropped
""")
_UNDRAINED = text("""
SELECT id FROM batches WHERE status IN ('in_progress', 'cancelling') AND drained_at IS NULL
  AND NOT EXISTS (SELECT 1 FROM queued_runs WHERE batch_id = id)
  AND NOT EXISTS (SELECT 1 FROM claimed_runs WHERE batch_id = id)
  AND NOT EXISTS (SELECT 1 FROM segments WHERE batch_id = id AND split_at IS NULL)
""")
_STALLED = text("""
UPDATE batches b SET nudged_at = now()
WHERE (status IN ('validating', 'finalizing') OR status IN ('cancelling', 'in_progress')
    AND drained_at IS NOT NULL)
  AND nudged_at <= now() - make_interval(secs => :age)
RETURNING id, tenant_id, status, traceparent, tracestate
""")
# Segments that are not split while none of their batch was for some time.
STALLED_SEGMENTS = """
WITH stalled AS (
  UPDATE batches b SET nudged_at = now()
  WHERE status IN ('in_progress', 'cancelling') AND drained_at IS NULL
    AND nudged_at <= now() - make_interval(secs => :age)
    AND EXISTS (SELECT 1 FROM segments s WHERE s.batch_id = b.id AND s.split_at IS NULL)
    AND NOT EXISTS (SELECT 1 FROM segments s
      WHERE s.batch_id = b.id AND s.split_at > now() - make_interval(secs => :age))
  RETURNING id, tenant_id, traceparent, tracestate
)
SELECT b.*, s.number FROM stalled b CROSS JOIN LATERAL (
  SELECT number FROM segments WHERE batch_id = b.id AND split_at IS NULL ORDER BY number) s
"""
_STALLED_SEGMENTS = text(STALLED_SEGMENTS)
# A copy in progress has moved its own next announcement.
EXPORTS_DUE = """
UPDATE batches SET export_next_at = now() + make_interval(secs => :age)
WHERE export_state = 'pending' AND status IN ('completed', 'failed', 'expired', 'cancelled')
  AND export_next_at <= now()
RETURNING id, tenant_id, traceparent, tracestate
"""
_EXPORTS_DUE = text(EXPORTS_DUE)
# A new announcement replaces those that still wait in the outbox.
_FORGET_ANNOUNCED = text("""
DELETE FROM outbox WHERE type = ANY(:types) AND subject = ANY(:subjects)
""")
_LEASES = text("""
SELECT count(*) FILTER (WHERE expires_at <= now()) AS lost,
  count(*) FILTER (WHERE expires_at > now()) AS living FROM workers
""")
# A set at a time: until it commits, other transactions that end the same batches wait for it.
_EXPIRED_LEASES = text("""
DELETE FROM workers WHERE id = ANY(ARRAY(
  SELECT id FROM workers WHERE expires_at <= now() LIMIT :limit FOR UPDATE SKIP LOCKED))
""")
# Any claim without a living lease, including those that an earlier sweep skipped or a crash left
# behind. A row per request ends the scan at a whole run. Requests lost repeatedly get a random delay:
# claimed together every time, the one that kills its worker would take the innocent ones with it to
# the dead letters.
_LOST_REQUESTS = text("""
WITH lost AS (
  DELETE FROM claimed_runs WHERE ctid = ANY(ARRAY(
    SELECT c.place FROM (
      SELECT c.ctid AS place, c.size FROM claimed_runs c
      WHERE NOT EXISTS (SELECT 1 FROM workers w WHERE w.id = c.lease_id)
      FOR UPDATE OF c SKIP LOCKED) c
    CROSS JOIN LATERAL generate_series(1, c.size) LIMIT :limit))
  RETURNING *
)
SELECT batch_id, tenant_id, lease_id, deadline, queued_at, l.line, attempts, interruptions,
  least(lost_leases + 1, greatest(lost_leases, :most))::smallint AS lost_leases, escalated, fleet, pool,
  claimed_at, 'The worker stopped responding' AS reason,
  CASE WHEN lost_leases = 0 THEN 0 ELSE random() * least(60, 2 ^ (lost_leases + 2)) END AS delay,
  false AS failed, true AS interrupted, now() <= deadline AS in_time
FROM lost CROSS JOIN LATERAL lines_in(lines) l (line)
""")
_POISON = text("""
WITH given AS (
  SELECT * FROM json_to_recordset(cast(:rows AS json)) AS g (
    batch_id uuid, tenant_id uuid, lease_id uuid, claimed_at timestamptz, line integer,
    attempts smallint, interruptions smallint, lost_leases smallint, escalated boolean, fleet text,
    pool text)
), stored AS (
  INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
    output_tokens, attempts, interruptions, succeeded, escalated, dead_lettered, pool, request_id,
    error_code, error_message)
  SELECT batch_id, tenant_id, lease_id, claimed_at, now(), line, 0, 0, attempts, interruptions,
    false, escalated, true, pool, '', 'worker_lost', :message FROM given
), buried AS (
  INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, error_code, error_message)
  SELECT batch_id, line, tenant_id, attempts, 'worker_lost', :message FROM given
), noted AS (
  INSERT INTO request_events (tenant_id, batch_id, line, kind, pool, lease_id, detail)
  SELECT tenant_id, batch_id, line, 'dead_lettered', pool, lease_id, :message FROM given
)
INSERT INTO tallies AS t (batch_id, fleet, pool, lease_id, tenant_id, failed, dead_lettered)
SELECT batch_id, fleet, pool, lease_id, tenant_id, count(*), count(*) FROM given
GROUP BY batch_id, fleet, pool, lease_id, tenant_id ORDER BY batch_id, pool, lease_id
ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET failed = t.failed + excluded.failed,
  dead_lettered = t.dead_lettered + excluded.dead_lettered
""")
# What a deletion of the file by a user would leave behind, too.
EXPIRE_FILES = """
WITH expired AS (
  DELETE FROM files WHERE ctid = ANY(ARRAY(
    SELECT f.ctid FROM files f
    WHERE f.expires_at <= now()
    ORDER BY f.expires_at LIMIT :limit FOR UPDATE SKIP LOCKED))
  RETURNING id, object_key, tenant_id, index_key
), orphaned AS (
  INSERT INTO orphan_objects (object_key, tenant_id, due_at)
  SELECT key, tenant_id, now() FROM expired CROSS JOIN unnest(ARRAY[object_key, index_key]) AS key
  WHERE key IS NOT NULL
  ON CONFLICT (object_key) DO UPDATE SET due_at = least(orphan_objects.due_at, excluded.due_at)
)
, erased AS (
  INSERT INTO erasures (batch_id, tenant_id, part)
  SELECT b.* FROM expired e CROSS JOIN LATERAL (
    (SELECT id, tenant_id, 'output' AS part FROM batches WHERE output_file_id = e.id OFFSET 0)
    UNION ALL
    (SELECT id, tenant_id, 'error' FROM batches WHERE error_file_id = e.id OFFSET 0)
    UNION ALL
    (SELECT id, tenant_id, 'input' FROM batches WHERE input_file_id = e.id OFFSET 0)
  ) b
  ON CONFLICT DO NOTHING
)
SELECT count(*) FROM expired
"""
_EXPIRE_FILES = text(EXPIRE_FILES)
_FORGET_UPLOADS = text("""
WITH forgotten AS (
  DELETE FROM uploads WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM uploads WHERE expires_at <= now() - interval '1 day'
    ORDER BY expires_at LIMIT :limit))
  RETURNING id
), destroyed AS (
  DELETE FROM data_keys WHERE id IN (SELECT id FROM forgotten)
)
SELECT count(*) FROM forgotten
""")
# The id of a file in the key of its object, of a piece of it, or of the list of its pieces. A colon
# would start the name of a parameter.
_FILE_KEY = r"^(?\:(?\:joined/)?sealed/[0-9a-f]{32}/[0-9a-f]{32}/)?[a-z]+/([0-9a-f]{32})"
# True of an object of a file, and of the answers' index of a batch that still has a file. Scalar
# subqueries stay lookups by key, whatever the statistics.
_IS_OWNED = f"""coalesce(
    (SELECT true FROM files WHERE id =
      cast(substring(o.object_key FROM '{_FILE_KEY}') AS uuid)),
    (SELECT output_file_id IS NOT NULL OR error_file_id IS NOT NULL
        OR status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
      FROM batches WHERE id =
        cast(substring(o.object_key FROM '^answers/([0-9a-f]{{32}})/') AS uuid)), false)"""  # noqa: S608
# Locked first: a deletion of the file makes them orphans again, and must not be missed.
_OWNED = text(f"""
SELECT object_key FROM orphan_objects o WHERE due_at <= now() AND {_IS_OWNED}
ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED
""")  # noqa: S608
_FORGET_OWNED = text(f"""
DELETE FROM orphan_objects o WHERE object_key = ANY(:keys) AND {_IS_OWNED}
""")  # noqa: S608
# The input of an active batch stays until the batch ends, even if its file was deleted or expired.
ORPHANS = f"""
SELECT object_key FROM orphan_objects o WHERE due_at <= now() AND NOT {_IS_OWNED}
  AND object_key NOT IN (
    SELECT unnest(ARRAY[input_key, 'indexes/' || input_key]) FROM batches
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))
ORDER BY due_at LIMIT :limit
"""  # noqa: S608
_ORPHAN_OBJECTS = text(ORPHANS)
_FORGET_ORPHAN_OBJECTS = text("DELETE FROM orphan_objects WHERE object_key = ANY(:keys)")
_LEASES_PER_SET = 40
_REQUESTS_PER_SET = 20_000
_SEGMENT = EventType.SEGMENT_CREATED
_STEPS = [
    EventType.BATCH_CREATED.value,
    EventType.BATCH_DRAINED.value,
    EventType.SEGMENT_DRAINED.value,
]


class Orphans(NamedTuple):
    """Keys of objects that nothing owns; `is_last` if nothing else is due."""

    keys: Sequence[str]
    is_last: bool


class SweepStore:
    """The database repairs of one tick of the scheduler."""

    def __init__(self, engine: Engine, *, new_id: Callable[[], UUID], max_lost_leases: int) -> None:
        self._engine = engine
        self._new_id = new_id
        self._max_lost_leases = max_lost_leases

    def sweep(self, *, cancel_grace: float, stalled_after: float) -> SweepResult:
        """Release requests of expired leases, end overdue batches, announce stalled ones again."""
        lost_requests = self._reap()
        late = self._expire()
        self._finish_cancelling(cancel_grace)
        self._drain_missed()
        self._restart_stalled(stalled_after)
        self._restart_segments(stalled_after)
        self._announce_exports(stalled_after)
        dead_lettered = [row.in_time for row in lost_requests if self._is_poison(row)]
        return SweepResult(
            reaped=len(lost_requests),
            interrupted=sum(row.pool == Pool.SPOT for row in lost_requests),
            in_time=sum(dead_lettered),
            late=len(dead_lettered) - sum(dead_lettered) + late,
            buried=len(dead_lettered),
        )

    def orphans(self, limit: int) -> Orphans:
        """Delete the rows of expired files and of old uploads; return the next orphans.

        Each step takes up to `limit` of them. The data keys of encrypted orphans are destroyed
        first: the store may be unavailable.
        """
        with begin(self._engine) as connection:
            expired = connection.execute(_EXPIRE_FILES, {"limit": limit}).scalar_one()
        with begin(self._engine) as connection:
            forgotten = connection.execute(_FORGET_UPLOADS, {"limit": limit}).scalar_one()
        with begin(self._engine) as connection:
            owned = connection.execute(_OWNED, {"limit": limit}).scalars().all()
            connection.execute(_FORGET_OWNED, {"keys": list(owned)})
        with begin(self._engine) as connection:
            keys = connection.execute(_ORPHAN_OBJECTS, {"limit": limit}).scalars().all()
            destroy_unused_keys(connection, map(data_key_of, keys))
        return Orphans(keys, max(expired, forgotten, len(owned), len(keys)) < limit)

    def forget_orphans(self, keys: Sequence[str]) -> None:
        """Record that these objects are deleted."""
        with begin(self._engine) as connection:
            connection.execute(_FORGET_ORPHAN_OBJECTS, {"keys": list(keys)})

    def trim_signed_out(self) -> int:
        """Delete signed-out portal sessions that have expired anyway; return how many."""
        with begin(self._engine) as connection:
            return sign_in.trim(connection)

    def trim_audit(self, *, retention: float, limit: int) -> int:
        """Delete up to `limit` audited actions older than `retention` seconds; return how many."""
        with begin(self._engine) as connection:
            return audit.trim(connection, retention=retention, limit=limit)

    def _is_poison(self, request: Any) -> bool:
        return bool(request.lost_leases >= self._max_lost_leases)

    def _reap(self) -> Sequence[Any]:
        """Release the requests of expired leases; return their rows.

        A request that has cost several workers in a row is dead-lettered instead: it may be what
        kills them.
        """
        with begin(self._engine) as connection:
            leases = connection.execute(_LEASES).one()
        storm = is_storm(leases.lost, leases.living)
        max_lost_leases = self._max_lost_leases - 1 if storm else self._max_lost_leases
        lost_requests: list[Any] = []
        is_last = False
        while not is_last:
            is_last, requests = self._end_leases(max_lost_leases)
            lost_requests += requests
        return lost_requests

    def _end_leases(self, max_lost_leases: int) -> tuple[bool, Sequence[Any]]:
        """End some expired leases, and release some requests without one.

        Returns whether these were the last ones, and the requests. No request's count of lost leases
        grows beyond `max_lost_leases`.
        """
        with begin(self._engine) as connection:
            ended_leases = connection.execute(_EXPIRED_LEASES, {"limit": _LEASES_PER_SET}).rowcount
            parameters = {"most": max_lost_leases, "limit": _REQUESTS_PER_SET}
            lost_requests = connection.execute(_LOST_REQUESTS, parameters).all()
            poison = [row for row in lost_requests if self._is_poison(row)]
            retryable = [row for row in lost_requests if not self._is_poison(row)]
            ending = requeue(connection, [row._asdict() for row in retryable])
            if poison:
                _dead_letter(connection, poison)
                ending += [BatchId(row.batch_id) for row in poison]
            note_drained(connection, sorted(set(ending)), self._new_id, delay=0)
        requests_ended(RequestStatus.FAILED, len(poison))
        is_last = ended_leases < _LEASES_PER_SET and len(lost_requests) < _REQUESTS_PER_SET
        return is_last, lost_requests

    def _expire(self) -> int:
        """End batches past their deadline; return how many requests broke a promise.

        What waited for a quota of its own tenant did not: it would page whoever is on call.
        """
        with begin(self._engine) as connection:
            connection.execute(_EXPIRE)
            rows = connection.execute(_EXPIRING).all()
            late = self._drop(connection, [row.id for row in rows if not row.held])
            held = self._drop(connection, [row.id for row in rows if row.held])
        requests_ended(RequestStatus.EXPIRED, late + held)
        return late

    def _finish_cancelling(self, grace: float) -> None:
        """Drop the requests still claimed or queued `grace` seconds after a cancellation."""
        with begin(self._engine) as connection:
            due = connection.execute(_CANCEL_DUE, {"grace": grace}).scalars().all()
            cancelled = self._drop(connection, due)
        requests_ended(RequestStatus.CANCELLED, cancelled)

    def _drain_missed(self) -> None:
        """Drain batches whose last request was settled while their others were being dropped."""
        with begin(self._engine) as connection:
            undrained = [BatchId(batch) for batch in connection.execute(_UNDRAINED).scalars()]
            note_drained(connection, undrained, self._new_id, delay=0)

    def _restart_stalled(self, age: float) -> None:
        """Announce again the batches that have waited `age` seconds for a split or for finalizing.

        Events in the outbox do not count: one may be there and never be accepted.
        """
        with begin(self._engine) as connection:
            stalled = connection.execute(_STALLED, {"age": age}).all()
            subjects = [format_batch_id(BatchId(row.id)) for row in stalled]
            if stalled:
                connection.execute(_FORGET_ANNOUNCED, {"types": _STEPS, "subjects": subjects})
            for row in stalled:
                waits_for_split = row.status == "validating"
                type_ = EventType.BATCH_CREATED if waits_for_split else EventType.BATCH_DRAINED
                tenant, batch = TenantId(row.tenant_id), BatchId(row.id)
                event = batch_event(self._new_id(), type_, tenant, batch, trace_of(row))
                add_event(connection, event, delay=0)

    def _restart_segments(self, age: float) -> None:
        """Announce again the segments of batches without a split for `age` seconds."""
        with begin(self._engine) as connection:
            stalled = connection.execute(_STALLED_SEGMENTS, {"age": age}).all()
            subjects = sorted({format_batch_id(BatchId(row.id)) for row in stalled})
            if stalled:
                connection.execute(
                    _FORGET_ANNOUNCED, {"types": [_SEGMENT.value], "subjects": subjects}
                )
            for row in stalled:
                tenant, batch = TenantId(row.tenant_id), BatchId(row.id)
                id_, trace = self._new_id(), trace_of(row)
                event = segment_event(id_, _SEGMENT, tenant, batch, row.number, trace)
                add_event(connection, event, delay=0)

    def _announce_exports(self, age: float) -> None:
        """Announce the ended batches whose results are to be copied to a bucket."""
        with begin(self._engine) as connection:
            for row in connection.execute(_EXPORTS_DUE, {"age": age}).all():
                tenant, batch = TenantId(row.tenant_id), BatchId(row.id)
                type_ = EventType.EXPORT_REQUESTED
                event = batch_event(self._new_id(), type_, tenant, batch, trace_of(row))
                add_event(connection, event, delay=0)

    def _drop(self, connection: Connection, batches: Sequence[Any]) -> int:
        if not batches:
            return 0
        dropped = drop_queued(connection, batches)
        running: int = connection.execute(_DROP_RUNNING, {"batches": list(batches)}).scalar_one()
        note_drained(connection, [BatchId(batch) for batch in batches], self._new_id, delay=0)
        return dropped + running


def _dead_letter(connection: Connection, poison: Sequence[Any]) -> None:
    rows = msgspec.json.encode([row._asdict() for row in poison]).decode()
    message = f"{poison[0].lost_leases} workers in a row were lost while running this request."
    connection.execute(_POISON, {"rows": rows, "message": message})

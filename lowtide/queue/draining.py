"""Detection, exactly once, of a batch or a segment that is split and has no request left to run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from lowtide.core.ids import BatchId, TenantId
from lowtide.core.runs import RUN_LINES
from lowtide.database.prepared import hot
from lowtide.events.model import Event, EventType, batch_event, segment_event
from lowtide.events.outbox import OWN_ATTEMPT_SECONDS, add_event, trace_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection


# Scans from the caller's mark first, if there is one: the whole batch may have left dead index
# entries, and finding nothing among them is slow. Scalar subqueries, since EXISTS would drop its
# ORDER BY and with it the index.
NOTHING_QUEUED = """
SELECT b.id FROM json_to_recordset(cast(:batches AS json)) AS b (
  id uuid, fleet text, pool text, at timestamptz, line integer)
WHERE CASE WHEN (
    SELECT q.line FROM queued_runs q WHERE q.fleet = b.fleet AND q.pool = b.pool AND q.batch_id = b.id
      AND (q.available_at, q.line) > (b.at, b.line)
    ORDER BY q.available_at, q.line LIMIT 1) IS NOT NULL THEN false
  WHEN (SELECT s.number FROM segments s WHERE s.batch_id = b.id AND s.split_at IS NULL
    ORDER BY s.number LIMIT 1) IS NOT NULL THEN false
  ELSE (SELECT q.line FROM queued_runs q WHERE q.batch_id = b.id ORDER BY q.line LIMIT 1) IS NULL END
ORDER BY b.id
"""
_NOTHING_QUEUED = hot(NOTHING_QUEUED)
_LOCK = text("SELECT id FROM batches WHERE id = ANY(:batches) ORDER BY id FOR NO KEY UPDATE")
_DRAIN = text("""
UPDATE batches b SET drained_at = now(), nudged_at = now(),
  status = CASE WHEN status = 'in_progress' AND NOT expiring THEN 'finalizing' ELSE status END,
  finalizing_at = CASE WHEN status = 'in_progress' AND NOT expiring THEN now() END
WHERE id = ANY(:batches) AND drained_at IS NULL AND status IN ('in_progress', 'cancelling')
  AND NOT EXISTS (SELECT 1 FROM queued_runs q WHERE q.batch_id = b.id)
  AND NOT EXISTS (SELECT 1 FROM claimed_runs c WHERE c.batch_id = b.id)
  AND NOT EXISTS (SELECT 1 FROM segments s WHERE s.batch_id = b.id AND s.split_at IS NULL)
RETURNING id, tenant_id, traceparent, tracestate
""")


# Of a batch with several segments.
_IN_SEGMENT = f"""batch_id = s.batch_id AND line > s.first_line - {RUN_LINES}
    AND line < s.first_line + s.lines AND lines && int4range(s.first_line, s.first_line + s.lines)"""
SEGMENTS_ENDED = f"""
SELECT s.batch_id, s.number FROM json_to_recordset(cast(:given AS json)) AS g (
  batch uuid, first integer, last integer)
CROSS JOIN LATERAL (
  SELECT batch_id, number, first_line, lines FROM segments
  WHERE batch_id = g.batch AND split_at IS NOT NULL AND drained_at IS NULL
    AND first_line <= g.last AND first_line + lines > g.first OFFSET 0) s
WHERE (SELECT true FROM queued_runs WHERE {_IN_SEGMENT} LIMIT 1) IS NULL
  AND EXISTS (SELECT FROM segments WHERE batch_id = g.batch AND number = 2)
ORDER BY s.batch_id, s.number
"""  # noqa: S608 - a constant of ours
_SEGMENTS_ENDED = hot(SEGMENTS_ENDED)
_LOCK_SEGMENTS = text("""
SELECT s.number FROM json_to_recordset(cast(:given AS json)) AS g (batch uuid, number integer)
CROSS JOIN LATERAL (
  SELECT number FROM segments WHERE batch_id = g.batch AND number = g.number FOR NO KEY UPDATE) s
""")
# Only of a batch that is open: what ends otherwise has requests without a result.
_DRAIN_SEGMENTS = text(f"""
UPDATE segments s SET drained_at = now()
FROM json_to_recordset(cast(:given AS json)) AS g (batch uuid, number integer), batches b
WHERE s.batch_id = g.batch AND s.number = g.number AND s.drained_at IS NULL AND b.id = g.batch
  AND b.status = 'in_progress' AND b.drained_at IS NULL AND NOT b.expiring
  AND (SELECT true FROM queued_runs WHERE {_IN_SEGMENT} LIMIT 1) IS NULL
  AND (SELECT true FROM claimed_runs WHERE {_IN_SEGMENT} LIMIT 1) IS NULL
RETURNING s.batch_id, s.number, s.tenant_id, b.traceparent, b.tracestate
""")  # noqa: S608 - a constant of ours


@dataclass(frozen=True, slots=True)
class Mark:
    """A position in the queue of a fleet's pool: a line, and the time it became available."""

    fleet: str
    pool: str
    at: datetime
    line: int


def note_drained(
    connection: Connection,
    batches: Sequence[BatchId],
    new_id: Callable[[], UUID],
    marks: Mapping[UUID, Mark] = MappingProxyType({}),
    *,
    delay: float = OWN_ATTEMPT_SECONDS,
) -> tuple[Event, ...]:
    """Mark batches without requests left as drained, and record their `batch.drained` events.

    Two workers may settle the last two requests at the same time, each with a snapshot that still
    has the other's. Hence the lock: the second checks again with a snapshot taken after the first
    committed. Only batches with nothing queued are locked, so running batches share no lock.
    `marks` holds the positions after which a batch's next request would be, where known. With a
    `delay` of 0, the scheduler's next pass over the outbox sends the events.
    """
    if not batches:
        return ()
    # `get`, since a claim of the same worker may change the marks meanwhile, in another thread.
    batch_marks = ((batch, marks.get(batch)) for batch in batches)
    positions = [
        {"id": batch, **({} if mark is None else asdict(mark))} for batch, mark in batch_marks
    ]
    parameters = {"batches": msgspec.json.encode(positions).decode()}
    candidates = connection.execute(_NOTHING_QUEUED, parameters).scalars().all()
    if not candidates:
        return ()
    connection.execute(_LOCK, {"batches": candidates})
    drained = connection.execute(_DRAIN, {"batches": candidates}).all()
    events = tuple(
        batch_event(
            new_id(),
            EventType.BATCH_DRAINED,
            TenantId(row.tenant_id),
            BatchId(row.id),
            trace_of(row),
        )
        for row in drained
    )
    for event in events:
        add_event(connection, event, delay=delay)
    return events


def note_drained_segments(
    connection: Connection,
    lines: Mapping[BatchId, tuple[int, int]],
    new_id: Callable[[], UUID],
    *,
    delay: float = OWN_ATTEMPT_SECONDS,
) -> tuple[Event, ...]:
    """Mark segments without requests left as drained, and record their `segment.drained` events.

    They are finalized while the others run. `lines` has the first and the last line of each batch
    that ended now. As for whole batches, the second of two workers looks again once the first has
    committed.
    """
    if not lines:
        return ()
    touched = [
        {"batch": batch, "first": first, "last": last} for batch, (first, last) in lines.items()
    ]
    given = msgspec.json.encode(touched).decode()
    candidates = connection.execute(_SEGMENTS_ENDED, {"given": given}).all()
    if not candidates:
        return ()
    ended = [{"batch": row.batch_id, "number": row.number} for row in candidates]
    parameters = {"given": msgspec.json.encode(ended).decode()}
    connection.execute(_LOCK_SEGMENTS, parameters)
    events = tuple(
        segment_event(
            new_id(),
            EventType.SEGMENT_DRAINED,
            TenantId(row.tenant_id),
            BatchId(row.batch_id),
            row.number,
            trace_of(row),
        )
        for row in connection.execute(_DRAIN_SEGMENTS, parameters)
    )
    for event in events:
        add_event(connection, event, delay=delay)
    return events

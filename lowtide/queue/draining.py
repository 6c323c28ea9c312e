"""Detection, exactly once, of a batch that is split and has no request left to run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from lowtide.core.ids import BatchId, TenantId
from lowtide.database.prepared import hot
from lowtide.events.model import Event, EventType, batch_event
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
    SELECT q.line FROM queue q WHERE q.fleet = b.fleet AND q.pool = b.pool AND q.batch_id = b.id
      AND (q.available_at, q.line) > (b.at, b.line)
    ORDER BY q.available_at, q.line LIMIT 1) IS NOT NULL THEN false
  WHEN (SELECT s.number FROM segments s WHERE s.batch_id = b.id AND s.split_at IS NULL
    ORDER BY s.number LIMIT 1) IS NOT NULL THEN false
  ELSE (SELECT q.line FROM queue q WHERE q.batch_id = b.id ORDER BY q.line LIMIT 1) IS NULL END
ORDER BY b.id
"""
_NOTHING_QUEUED = hot(NOTHING_QUEUED)
_LOCK = text("SELECT id FROM batches WHERE id = ANY(:batches) ORDER BY id FOR NO KEY UPDATE")
_DRAIN = text("""
UPDATE batches b SET drained_at = now(), nudged_at = now(),
  status = CASE WHEN status = 'in_progress' AND NOT expiring THEN 'finalizing' ELSE status END,
  finalizing_at = CASE WHEN status = 'in_progress' AND NOT expiring THEN now() END
WHERE id = ANY(:batches) AND drained_at IS NULL AND status IN ('in_progress', 'cancelling')
  AND NOT EXISTS (SELECT 1 FROM queue q WHERE q.batch_id = b.id)
  AND NOT EXISTS (SELECT 1 FROM claims c WHERE c.batch_id = b.id)
  AND NOT EXISTS (SELECT 1 FROM segments s WHERE s.batch_id = b.id AND s.split_at IS NULL)
RETURNING id, tenant_id, traceparent, tracestate
""")


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

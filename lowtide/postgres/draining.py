"""Noticing, exactly once, that a batch has no line left to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.domain.events import Event, EventType, batch_event
from lowtide.domain.ids import BatchId, TenantId
from lowtide.postgres.outbox import add_event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from sqlalchemy import Connection

_NOTHING_QUEUED = text("""
SELECT id FROM unnest(cast(:batches AS uuid[])) AS id
WHERE NOT EXISTS (SELECT 1 FROM queue WHERE batch_id = id) ORDER BY id
""")
_LOCK = text("SELECT id FROM batches WHERE id = ANY(:batches) ORDER BY id FOR NO KEY UPDATE")
_DRAIN = text("""
UPDATE batches b SET drained_at = now(), nudged_at = now(),
  status = CASE WHEN status = 'in_progress' AND NOT expiring THEN 'finalizing' ELSE status END,
  finalizing_at = CASE WHEN status = 'in_progress' AND NOT expiring THEN now() END
WHERE id = ANY(:batches) AND drained_at IS NULL AND status IN ('in_progress', 'cancelling')
  AND NOT EXISTS (SELECT 1 FROM queue q WHERE q.batch_id = b.id)
  AND NOT EXISTS (SELECT 1 FROM claims c WHERE c.batch_id = b.id)
RETURNING id, tenant_id
""")


def note_drained(
    connection: Connection, batches: Sequence[BatchId], new_id: Callable[[], UUID]
) -> tuple[Event, ...]:
    """Move batches that ended their last line on, and record their `batch.drained` events.

    Two workers may end the last two lines at the same time, each still seeing the other's. Hence
    the lock: whoever comes second looks again with a snapshot taken after the first committed.
    Only batches with nothing queued take it, so that running batches stay free of a shared lock.
    """
    if not batches:
        return ()
    candidates = connection.execute(_NOTHING_QUEUED, {"batches": list(batches)}).scalars().all()
    if not candidates:
        return ()
    connection.execute(_LOCK, {"batches": candidates})
    drained = connection.execute(_DRAIN, {"batches": candidates}).all()
    events = tuple(
        batch_event(new_id(), EventType.BATCH_DRAINED, TenantId(row.tenant_id), BatchId(row.id))
        for row in drained
    )
    for event in events:
        add_event(connection, event)
    return events

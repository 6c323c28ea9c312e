"""What transactions write into the ledger of their cell; nothing in an installation without a number."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from lowtide.batches.ledger import Record, RecordedFile
from lowtide.core.errors import NotFound, Unavailable
from lowtide.core.ids import BatchId, format_batch_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from lowtide.batches.ledger import Ledger
    from lowtide.core.ids import FileId


_log = logging.getLogger(__name__)
# The lock makes the end of a batch wait, which would otherwise leave a record behind it.
_RECORDS = text("""
SELECT b.id, b.tenant_id, t.name AS tenant_name, b.user_id, b.input_file_id, b.input_key, b.endpoint,
  b.completion_window, b.created_at, b.deadline, clock_timestamp() AS recorded_at, b.metadata,
  b.idempotency_key, b.idempotency_digest, b.output_expires_after, b.traceparent, b.tracestate,
  b.start_pool, b.input_url, b.output_url, b.zero_retention, b.priority, b.enqueued_tokens,
  b.status = 'cancelling' AS is_cancelling, f.id AS file_id, f.filename, f.bytes, f.lines, f.sha256,
  f.object_key, f.status AS file_status, f.status_details, f.created_at AS file_created_at,
  f.endpoint AS file_endpoint, f.expires_at, f.model, f.models, f.index_key, f.segments
FROM batches b JOIN tenants t ON t.id = b.tenant_id LEFT JOIN files f ON f.id = b.input_file_id
WHERE b.id = ANY(cast(:batches AS uuid[]))
  AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
ORDER BY b.id FOR SHARE OF b
""")
_READERS = text("""
SELECT id FROM batches WHERE input_file_id = :file
  AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
""")


class LedgerKeeper:
    """Keeps the records and fences of a cell; without a ledger, every call does nothing.

    All raise Unavailable if the bucket does not respond.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = ledger

    def record(self, connection: Connection, batches: Sequence[BatchId]) -> None:
        """Record unfinished batches as they are now.

        Call it last in the transaction that changes them: what is rolled back by a refusal must
        leave no record. A crash before the commit leaves one, which the scheduler removes.
        """
        if self._ledger is None:
            return
        rows = connection.execute(_RECORDS, {"batches": list(batches)}).all()
        for row in rows:
            self._ledger.put(_record(self._ledger.cell, row))

    def record_change(self, connection: Connection, batch: BatchId) -> None:
        """Record a change of a batch that must not be lost; raises NotFound if it has moved.

        An evacuation creates its fence before it reads the record: either it sees the change, or
        this call sees the fence.
        """
        if self._ledger is None:
            return
        self.record(connection, [batch])
        fence = self._ledger.fence(batch)
        if fence is not None and fence.cell != self._ledger.cell:
            raise NotFound(
                f"Batch {format_batch_id(batch)!r} has moved to another cell.", param="id"
            )

    def record_deletion(self, connection: Connection, file: FileId) -> None:
        """Record that the batches of an input file no longer have it."""
        if self._ledger is None:
            return
        readers = connection.execute(_READERS, {"file": file}).scalars().all()
        self.record(connection, [BatchId(batch) for batch in readers])

    def may_end(self, batch: BatchId) -> bool:
        """Return whether this cell ends a batch, for good; else another cell does.

        Call it in the transaction that ends the batch, once nothing but the commit can fail.
        """
        if self._ledger is None:
            return True
        fence = self._ledger.claim(batch)
        if fence.cell == self._ledger.cell:
            return True
        _log.warning("batch.ends_elsewhere", extra={"cell": fence.cell})
        return False

    def ended(self, batch: BatchId) -> None:
        """Delete the record of a batch after its end is committed; else the scheduler does."""
        if self._ledger is None:
            return
        try:
            self._ledger.forget_record(batch)
        except Unavailable as error:
            _log.warning("ledger.not_updated", extra={"reason": error.for_log})


NO_LEDGER: Final = LedgerKeeper()
"""That of an installation without a number."""


def _record(cell: int, row: Any) -> Record:
    return Record(
        cell=cell,
        batch=row.id,
        tenant=row.tenant_id,
        tenant_name=row.tenant_name,
        user=row.user_id,
        input_file=row.input_file_id,
        input_key=row.input_key,
        endpoint=row.endpoint,
        completion_window=row.completion_window,
        created_at=row.created_at,
        deadline=row.deadline,
        recorded_at=row.recorded_at,
        metadata=row.metadata,
        idempotency_key=row.idempotency_key,
        idempotency_digest=row.idempotency_digest,
        output_expires_after=row.output_expires_after,
        traceparent=row.traceparent,
        tracestate=row.tracestate,
        pool=row.start_pool,
        input_url=row.input_url,
        output_url=row.output_url,
        zero_retention=row.zero_retention,
        priority=row.priority,
        tokens=row.enqueued_tokens or 0,
        is_cancelling=row.is_cancelling,
        file=None if row.file_id is None or row.input_url is not None else _file(row),
    )


def _file(row: Any) -> RecordedFile:
    return RecordedFile(
        filename=row.filename,
        size=row.bytes,
        lines=row.lines,
        sha256=row.sha256,
        object_key=row.object_key,
        status=row.file_status,
        status_details=row.status_details,
        created_at=row.file_created_at,
        endpoint=row.file_endpoint,
        expires_at=row.expires_at,
        model=row.model,
        models=row.models,
        index_key=row.index_key,
        segments=row.segments,
    )

"""Storage for finalizing: a batch's results, and its closing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from lowtide.batches.model import BatchStatus
from lowtide.batches.request_store import IS_LONG, SHORT_BODY, body_in_pieces
from lowtide.batches.results import FinishedLine
from lowtide.core.ids import TenantId
from lowtide.database.connections import begin
from lowtide.events.outbox import add_event
from lowtide.files.store import add_file
from lowtide.objects.names import DataKeyId

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Engine

    from lowtide.core.ids import BatchId
    from lowtide.events.model import Event
    from lowtide.files.model import StoredFile


@dataclass(frozen=True, slots=True)
class FinalJob:
    """A drained batch to close, with its final status and the expiry of its files."""

    batch: BatchId
    tenant: TenantId
    final_status: BatchStatus
    drained_at: datetime
    files_expire_at: datetime | None
    zero_retention: bool = False

    @property
    def data_key(self) -> DataKeyId | None:
        """The data key of the batch's answers, None if they are plain."""
        return DataKeyId(self.tenant, self.batch) if self.zero_retention else None


_JOB = text("""
SELECT tenant_id, status, drained_at, zero_retention,
  drained_at + make_interval(secs => output_expires_after) AS files_expire_at
FROM batches
WHERE id = :batch AND drained_at IS NOT NULL
  AND status IN ('finalizing', 'cancelling', 'in_progress')
""")
# With statistics older than the batch, the planner expects no rows, and a plain join then reads the
# whole batch once per request. OFFSET 0 keeps it a lookup of each request by key.
LINES = """
SELECT r.line, r.custom_id, f.status_code, f.request_id, f.body, f.error_code, f.error_message,
  f.batch_id IS NOT NULL AS ran
FROM requests r LEFT JOIN LATERAL (
  SELECT * FROM results WHERE batch_id = r.batch_id AND line = r.line OFFSET 0) f ON true
WHERE r.batch_id = :batch AND r.line > :after ORDER BY r.line LIMIT :limit
"""
# A page as one value takes an eighth of the time that the driver needs for a row per request. Long
# bodies end a page early.
_PAGE = text(f"""
SELECT json_agg(json_build_array(line, custom_id, status_code, coalesce(request_id, ''),
  {SHORT_BODY},
  CASE WHEN ran THEN error_code ELSE :code END,
  CASE WHEN ran THEN error_message ELSE :message END, {IS_LONG}) ORDER BY line)::text
FROM (
  SELECT *, sum(octet_length(body)) OVER (
    ORDER BY line ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
  FROM ({LINES}) found
) page WHERE bytes_before IS NULL OR bytes_before < :bytes
""")  # noqa: S608
_FIRST_PAGE, _LONGEST_PAGE = 1000, 8000
_PAGE_BYTES = 4 << 20
_ENDING = {
    BatchStatus.COMPLETED: ("finalizing", "completed_at"),
    BatchStatus.CANCELLED: ("cancelling", "cancelled_at"),
    BatchStatus.EXPIRED: ("in_progress", "expired_at"),
}
_CLOSE = {
    status: text(f"""
UPDATE batches SET status = '{status}', {column} = now(), at_risk = false,
  completed = :completed, failed = :failed, output_file_id = :output, error_file_id = :error
WHERE id = :batch AND status = '{before}' AND drained_at IS NOT NULL
""")  # noqa: S608
    for status, (before, column) in _ENDING.items()
}
_decode_page = msgspec.json.Decoder(list[FinishedLine]).decode
ENDS_AS = {BatchStatus(before): status for status, (before, _) in _ENDING.items()}
"""The final status of a drained batch, by the status it drained in."""


class FinalStore:
    """Drained batches."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def job(self, batch: BatchId) -> FinalJob | None:
        """Return the job of a batch; None if it is not drained, or is already closed."""
        with begin(self._engine) as connection:
            row = connection.execute(_JOB, {"batch": batch}).one_or_none()
        if row is None:
            return None
        final_status = ENDS_AS[BatchStatus(row.status)]
        return FinalJob(
            batch,
            TenantId(row.tenant_id),
            final_status,
            row.drained_at,
            row.files_expire_at,
            row.zero_retention,
        )

    def lines(self, job: FinalJob, never_ran: tuple[str, str]) -> Iterator[FinishedLine]:
        """Yield every request in input order; `never_ran` is the error of those without a result.

        Long bodies are left out. Reads in pages, so that memory is bounded and snapshots are short.
        """
        code, message = never_ran
        after, limit = 0, _FIRST_PAGE
        while True:
            with begin(self._engine) as connection:
                page = connection.execute(
                    _PAGE,
                    {
                        "batch": job.batch,
                        "after": after,
                        "limit": limit,
                        "bytes": _PAGE_BYTES,
                        "code": code,
                        "message": message,
                    },
                ).scalar_one()
            if page is None:
                return
            lines = _decode_page(page)
            yield from lines
            # A page that long bodies ended early makes the next one smaller.
            after, limit = lines[-1].number, min(2 * len(lines), _LONGEST_PAGE)

    def body(self, job: FinalJob, line: int) -> Iterator[str]:
        """Yield a long body in pieces."""
        return body_in_pieces(lambda: begin(self._engine), job.batch, line)

    def close(
        self,
        job: FinalJob,
        *,
        completed: int,
        failed: int,
        output: StoredFile | None,
        error: StoredFile | None,
        event: Event,
    ) -> bool:
        """Record the files and the final status; return False if the batch has moved on."""
        with begin(self._engine) as connection:
            for file in (output, error):
                if file is not None:
                    add_file(connection, file)
            result = connection.execute(
                _CLOSE[job.final_status],
                {
                    "batch": job.batch,
                    "completed": completed,
                    "failed": failed,
                    "output": None if output is None else output.id,
                    "error": None if error is None else error.id,
                },
            )
            if result.rowcount != 1:
                connection.rollback()
                return False
            add_event(connection, event)
            return True

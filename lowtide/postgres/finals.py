"""Reading what a batch produced, and closing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.domain.ids import TenantId
from lowtide.domain.jobs import FinalJob
from lowtide.domain.outputs import FinishedLine
from lowtide.domain.statuses import BatchStatus
from lowtide.postgres.connections import begin
from lowtide.postgres.files import add_file
from lowtide.postgres.outbox import add_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from lowtide.domain.events import Event
    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import BatchId

_JOB = text("""
SELECT tenant_id, status, drained_at,
  drained_at + make_interval(secs => output_expires_after) AS files_expire_at
FROM batches
WHERE id = :batch AND drained_at IS NOT NULL
  AND status IN ('finalizing', 'cancelling', 'in_progress')
""")
# Statistics older than a batch tell the planner that it has no rows, and a plain join then reads
# the whole batch once per line. OFFSET 0 keeps it a look-up of each line by key.
LINES = """
SELECT r.line, r.custom_id, f.status_code, f.request_id, f.body, f.error_code, f.error_message,
  f.batch_id IS NOT NULL AS ran
FROM requests r LEFT JOIN LATERAL (
  SELECT * FROM results WHERE batch_id = r.batch_id AND line = r.line OFFSET 0) f ON true
WHERE r.batch_id = :batch AND r.line > :after ORDER BY r.line LIMIT :limit
"""
_LINES = text(LINES)
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
ENDS_AS = {BatchStatus(before): status for status, (before, _) in _ENDING.items()}
"""The final status of a drained batch, by the status it drained in."""


class PostgresFinals:
    """Drained batches."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def job(self, batch: BatchId) -> FinalJob | None:
        """Return what to finalize; None when the batch is not drained, or is closed already."""
        with begin(self._engine) as connection:
            row = connection.execute(_JOB, {"batch": batch}).one_or_none()
        if row is None:
            return None
        ending = ENDS_AS[BatchStatus(row.status)]
        return FinalJob(batch, TenantId(row.tenant_id), ending, row.drained_at, row.files_expire_at)

    def lines(self, job: FinalJob, never_ran: tuple[str, str]) -> Iterator[FinishedLine]:
        """Yield every line in input order; those without a result carry code and message given.

        Read in pages, so that neither memory nor a snapshot is held for long.
        """
        after, page = 0, 2000
        code, message = never_ran
        while True:
            with begin(self._engine) as connection:
                parameters = {"batch": job.batch, "after": after, "limit": page}
                rows = connection.execute(_LINES, parameters).all()
            for line, custom_id, status_code, request_id, body, error_code, error, ran in rows:
                if ran:
                    yield FinishedLine(
                        line, custom_id, status_code, request_id, body, error_code, error
                    )
                else:
                    yield FinishedLine(line, custom_id, error_code=code, error_message=message)
            if len(rows) < page:
                return
            after = rows[-1].line

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
        """Record the files and the final state; False when the batch has moved on meanwhile."""
        with begin(self._engine) as connection:
            for file in (output, error):
                if file is not None:
                    add_file(connection, file)
            closed = connection.execute(
                _CLOSE[job.final_status],
                {
                    "batch": job.batch,
                    "completed": completed,
                    "failed": failed,
                    "output": None if output is None else output.id,
                    "error": None if error is None else error.id,
                },
            )
            if closed.rowcount != 1:
                connection.rollback()
                return False
            add_event(connection, event)
            return True

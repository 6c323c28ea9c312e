"""Storage for finalizing: a batch's results, and its closing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from lowtide.batches.ledger_keeper import NO_LEDGER
from lowtide.batches.model import BatchStatus
from lowtide.batches.request_store import IS_LONG, SHORT_BODY, body_in_pieces
from lowtide.batches.results import FinishedLine
from lowtide.core.ids import TenantId
from lowtide.database.connections import begin
from lowtide.events.outbox import add_event, trace_of
from lowtide.files.store import add_file, add_orphans
from lowtide.objects.names import DataKeyId

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Engine

    from lowtide.batches.ledger_keeper import LedgerKeeper
    from lowtide.core.ids import BatchId
    from lowtide.events.model import Event
    from lowtide.files.model import StoredFile
    from lowtide.telemetry.tracing import TraceContext

MAX_LINE: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FinalJob:
    """A batch to close once it is drained, with its final status and the expiry of its files.

    Until then, only its drained segments are written, in which every request has a result.
    """

    batch: BatchId
    tenant: TenantId
    final_status: BatchStatus
    drained_at: datetime | None
    files_expire_at: datetime
    trace: TraceContext | None = None
    zero_retention: bool = False

    @property
    def data_key(self) -> DataKeyId | None:
        """The data key of the batch's answers, None if they are plain."""
        return DataKeyId(self.tenant, self.batch) if self.zero_retention else None


@dataclass(frozen=True, slots=True)
class PieceRecord:
    """The lines and bytes of a segment's piece of a file, and their hash; None without lines."""

    lines: int = 0
    size: int = 0
    sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class FinalSegment:
    """A segment of a batch: `lines` requests from `first_line` on, and its pieces.

    `is_announced` is True for half a minute after its own event that it is drained.
    """

    number: int
    first_line: int
    lines: int
    is_finalized: bool
    is_announced: bool
    output: PieceRecord
    error: PieceRecord


_JOB = text("""
SELECT tenant_id, status, drained_at, traceparent, tracestate, zero_retention,
  drained_at + make_interval(secs => coalesce(output_expires_after,
    (SELECT batch_retention FROM tenants WHERE id = batches.tenant_id), :data_kept)) AS files_expire_at
FROM batches
WHERE id = :batch AND status IN ('finalizing', 'cancelling', 'in_progress')
  AND (drained_at IS NOT NULL OR EXISTS (
    SELECT FROM segments WHERE batch_id = :batch AND number = :segment AND drained_at IS NOT NULL))
""")
# With statistics older than the batch, the planner expects no rows, and a plain join then reads the
# whole batch once per request. OFFSET 0 keeps it a lookup of each request by key.
LINES = """
SELECT r.line, r.custom_id, f.status_code, f.request_id, f.body, f.error_code, f.error_message,
  f.model_revision, f.batch_id IS NOT NULL AS ran
FROM requests r LEFT JOIN LATERAL (
  SELECT * FROM results WHERE batch_id = r.batch_id AND line = r.line OFFSET 0) f ON true
WHERE r.batch_id = :batch AND r.line > :after AND r.line < :end ORDER BY r.line LIMIT :limit
"""
# A page as one value takes an eighth of the time that the driver needs for a row per request. Long
# bodies end a page early.
_PAGE = text(f"""
SELECT json_agg(json_build_array(line, custom_id, status_code, coalesce(request_id, ''),
  {SHORT_BODY},
  CASE WHEN ran THEN error_code ELSE :code END,
  CASE WHEN ran THEN error_message ELSE :message END, {IS_LONG}, model_revision) ORDER BY line)::text
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
# A batch that an earlier version has split is one segment.
_ADD_SEGMENT = text("""
INSERT INTO segments (batch_id, number, tenant_id, first_line, lines, index_start, index_end, split_at)
SELECT id, 1, tenant_id, 1, total, 0, 0, now() FROM batches b
WHERE id = :batch AND NOT EXISTS (SELECT 1 FROM segments WHERE batch_id = b.id)
ON CONFLICT DO NOTHING
""")
_SEGMENTS = text("""
SELECT number, first_line, lines, finalized_at IS NOT NULL AS is_finalized,
  coalesce(drained_at > now() - interval '30 s', false) AS is_announced, output_lines,
  output_bytes, output_sha256, error_lines, error_bytes, error_sha256
FROM segments WHERE batch_id = :batch ORDER BY number
""")
# While a batch is not closed, its segments own their objects, however long that takes. The lock
# makes the close wait.
_EXPECT = text("""
INSERT INTO orphan_objects (object_key, tenant_id, due_at)
SELECT key, b.tenant_id, 'infinity' FROM (
  SELECT tenant_id FROM batches
  WHERE id = :batch AND status IN ('finalizing', 'cancelling', 'in_progress') FOR SHARE) b
CROSS JOIN unnest(cast(:keys AS text[])) AS key
ON CONFLICT (object_key) DO UPDATE SET due_at = excluded.due_at
""")
_FINISH_SEGMENT = text("""
UPDATE segments SET finalized_at = now(), output_lines = :output_lines,
  output_bytes = :output_bytes, output_sha256 = :output_sha256, error_lines = :error_lines,
  error_bytes = :error_bytes, error_sha256 = :error_sha256
WHERE batch_id = :batch AND number = :number AND finalized_at IS NULL
""")
_PROGRESS = text("""
UPDATE batches SET nudged_at = now()
WHERE id = :batch AND status IN ('finalizing', 'cancelling', 'in_progress')
""")
# From now on the files own the objects. A late call of the same segment may still write some: what
# no file owns by then, the scheduler deletes.
_OWNED = text("""
UPDATE orphan_objects SET due_at = now() + make_interval(secs => :seconds)
WHERE object_key = ANY(cast(:keys AS text[]))
""")
_DROP_BODIES = text("""
INSERT INTO erasures (batch_id, tenant_id, part, due_at)
SELECT batch_id, tenant_id, 'bodies', now() + make_interval(secs => :seconds) FROM segments
WHERE batch_id = :batch AND number = 1 AND finalized_at IS NOT NULL ON CONFLICT DO NOTHING
""")
_LATE_SECONDS = 3600
BODIES_KEPT_SECONDS = 120
"""Seconds from the close of a batch until its bodies go: reads of them end meanwhile."""
_decode_page = msgspec.json.Decoder(list[FinishedLine]).decode
ENDS_AS = {BatchStatus(before): status for status, (before, _) in _ENDING.items()}
"""The final status of a drained batch, by the status it drained in."""


class FinalStore:
    """Drained batches."""

    def __init__(
        self, engine: Engine, *, data_kept: float, ledger: LedgerKeeper = NO_LEDGER
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._data_kept = data_kept

    def job(self, batch: BatchId, segment: int | None = None) -> FinalJob | None:
        """Return the job of a batch; None if it and the segment still run, or it is closed."""
        parameters = {"batch": batch, "segment": segment, "data_kept": self._data_kept}
        with begin(self._engine) as connection:
            row = connection.execute(_JOB, parameters).one_or_none()
        if row is None:
            return None
        final_status = ENDS_AS[BatchStatus(row.status)]
        return FinalJob(
            batch,
            TenantId(row.tenant_id),
            final_status,
            row.drained_at,
            row.files_expire_at,
            trace_of(row),
            row.zero_retention,
        )

    def segments(self, job: FinalJob) -> list[FinalSegment]:
        """Return the segments of a batch in order."""
        with begin(self._engine) as connection:
            connection.execute(_ADD_SEGMENT, {"batch": job.batch})
            return [_segment(row) for row in connection.execute(_SEGMENTS, {"batch": job.batch})]

    def announce(self, events: Sequence[Event]) -> None:
        """Record events about segments."""
        with begin(self._engine) as connection:
            for event in events:
                add_event(connection, event)

    def expect(self, job: FinalJob, keys: Sequence[str]) -> bool:
        """Record objects before they are written; return False if the batch is closed."""
        with begin(self._engine) as connection:
            parameters = {"batch": job.batch, "keys": list(keys)}
            return connection.execute(_EXPECT, parameters).rowcount > 0

    def finish_segment(
        self,
        job: FinalJob,
        segment: FinalSegment,
        keys: Sequence[str],
        *,
        output: PieceRecord,
        error: PieceRecord,
    ) -> None:
        """Record the pieces of a segment.

        If the batch was closed meanwhile, objects that no file owns are orphans.
        """
        parameters = {
            "batch": job.batch,
            "number": segment.number,
            "output_lines": output.lines,
            "output_bytes": output.size,
            "output_sha256": output.sha256,
            "error_lines": error.lines,
            "error_bytes": error.size,
            "error_sha256": error.sha256,
        }
        with begin(self._engine) as connection:
            connection.execute(_FINISH_SEGMENT, parameters)
            if connection.execute(_PROGRESS, {"batch": job.batch}).rowcount:
                return
            add_orphans(connection, job.tenant, keys, 0)

    def lines(
        self, job: FinalJob, never_ran: tuple[str, str], first: int = 1, end: int = MAX_LINE
    ) -> Iterator[FinishedLine]:
        """Yield requests from `first` up to `end` in input order.

        `never_ran` is the error of those without a result. Long bodies are left out. Reads in
        pages, so that memory is bounded and snapshots are short.
        """
        code, message = never_ran
        after, limit = first - 1, _FIRST_PAGE
        while True:
            with begin(self._engine) as connection:
                page = connection.execute(
                    _PAGE,
                    {
                        "batch": job.batch,
                        "after": after,
                        "end": end,
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
        keys: Sequence[str] = (),
    ) -> bool:
        """Record the files and the final status; return False if the batch has moved on.

        So it has if another cell ends it.

        `keys` are those of the objects that the files own from now on.
        """
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
            connection.execute(_OWNED, {"keys": list(keys), "seconds": _LATE_SECONDS})
            parameters = {"batch": job.batch, "seconds": BODIES_KEPT_SECONDS}
            connection.execute(_DROP_BODIES, parameters)
            add_event(connection, event)
            if not self._ledger.may_end(job.batch):
                connection.rollback()
                return False
        self._ledger.ended(job.batch)
        return True


def _segment(row: Any) -> FinalSegment:
    return FinalSegment(
        row.number,
        row.first_line,
        row.lines,
        row.is_finalized,
        row.is_announced,
        PieceRecord(row.output_lines, row.output_bytes, row.output_sha256),
        PieceRecord(row.error_lines, row.error_bytes, row.error_sha256),
    )

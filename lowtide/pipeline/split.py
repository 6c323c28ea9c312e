"""Splitting a batch's file into queued requests, in one transaction."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from lowtide.core.errors import NotFound
from lowtide.core.ids import TenantId, format_batch_id
from lowtide.database.connections import begin
from lowtide.files.lines import Limits, LineReader, Problem, read_lines
from lowtide.objects.names import Damaged
from lowtide.search.indexing import enqueue
from lowtide.telemetry.tracing import BATCH, TENANT, UNTRACED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import BatchId
    from lowtide.files.lines import InputLine
    from lowtide.objects.store import ObjectStore
    from lowtide.telemetry.tracing import Span, Tracer


@dataclass(frozen=True, slots=True)
class SplitJob:
    """A batch whose file waits to be split."""

    batch: BatchId
    tenant: TenantId
    input_key: str
    endpoint: str


_JOB = text("""
SELECT tenant_id, input_key, endpoint FROM batches WHERE id = :batch AND status = 'validating'
""")
# COPY cannot write to a table with row-level security, hence the detour.
_INCOMING = text("""
CREATE TEMPORARY TABLE incoming (
  line integer, start bigint, length integer, checksum integer, custom_id text)
ON COMMIT DROP
""")
_COPY = "COPY incoming FROM STDIN"
_STORE = text("""
INSERT INTO requests (batch_id, tenant_id, line, start, length, checksum, custom_id)
SELECT :batch, :tenant, line, start, length, checksum, custom_id FROM incoming
""")
_QUEUE = text("""
INSERT INTO queue (batch_id, tenant_id, deadline, available_at, queued_at, line, pool)
SELECT b.id, b.tenant_id, b.deadline, now(), now(), i.line, b.start_pool
FROM incoming i, batches b WHERE b.id = :batch
""")
_START = text("""
UPDATE batches SET status = 'in_progress', in_progress_at = now(), nudged_at = now(),
  total = :total, model = :model
WHERE id = :batch AND status = 'validating'
""")
_REJECT = text("""
UPDATE batches SET status = 'failed', failed_at = now(), errors = cast(:errors AS jsonb)
WHERE id = :batch AND status = 'validating'
""")
_BLOCK_LINES = 1000
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


class SplitTransaction:
    """A split in progress; nothing of it is visible until the block ends without an exception."""

    def __init__(self, connection: Connection, job: SplitJob) -> None:
        self._connection = connection
        self.job = job

    def write(self, lines: Iterable[InputLine]) -> int:
        """Copy requests into a temporary table as they are read; return how many."""
        source = _CopySource(lines)
        self._connection.execute(_INCOMING)
        cursor: Any = self._connection.connection.cursor()
        try:
            cursor.execute(_COPY, stream=source.blocks())
        finally:
            cursor.close()
        if source.failure is not None:
            raise source.failure
        return source.count

    def start(self, total: int, model: str | None) -> bool:
        """Store and queue what was written; return False if the batch was cancelled meanwhile."""
        self._connection.execute(_STORE, {"batch": self.job.batch, "tenant": self.job.tenant})
        self._connection.execute(_QUEUE, {"batch": self.job.batch})
        result = self._connection.execute(
            _START, {"batch": self.job.batch, "total": total, "model": model}
        )
        if result.rowcount != 1:
            self.discard()
            return False
        enqueue(self._connection, self.job.batch, self.job.tenant)
        return True

    def discard(self) -> None:
        """Undo what was written."""
        self._connection.rollback()


class _CopySource:
    """Rows in COPY's text format; an error of the source ends the copy and is kept as `failure`:

    an exception inside the driver's copy loop would leave the connection in copy mode.
    """

    def __init__(self, lines: Iterable[InputLine]) -> None:
        self._lines = lines
        self.count = 0
        self.failure: Exception | None = None

    def blocks(self) -> Iterator[bytes]:
        try:
            yield from self._encoded()
        except Exception as failure:  # noqa: BLE001 - raised again where COPY ends
            self.failure = failure

    def _encoded(self) -> Iterator[bytes]:
        lines = iter(self._lines)
        while rows := [_row(line) for line in islice(lines, _BLOCK_LINES)]:
            self.count += len(rows)
            yield "".join(rows).encode()


def _row(line: InputLine) -> str:
    custom_id = line.custom_id
    if "\\" in custom_id or not custom_id.isprintable():
        custom_id = custom_id.translate(_ESCAPES)
    checksum = r"\N" if line.checksum is None else line.checksum
    return f"{line.number}\t{line.offset}\t{line.length}\t{checksum}\t{custom_id}\n"


class SplitStore:
    """Transactions of splits, one at a time per batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def open(self, batch: BatchId) -> Iterator[SplitTransaction | None]:
        """Open the transaction of a split; None if there is nothing (left) to split.

        Of two deliveries of the same event, one waits for the other here, and finds the split done.
        """
        with begin(self._engine) as connection:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
                {"key": f"split {batch}"},
            )
            row = connection.execute(_JOB, {"batch": batch}).one_or_none()
            if row is None:
                yield None
            else:
                tenant = TenantId(row.tenant_id)
                yield SplitTransaction(
                    connection, SplitJob(batch, tenant, row.input_key, row.endpoint)
                )

    def reject(self, batch: BatchId, problems: Sequence[Problem]) -> None:
        """Fail a batch because of problems in its file."""
        errors = msgspec.json.encode([asdict(problem) for problem in problems]).decode()
        with begin(self._engine) as connection:
            connection.execute(_REJECT, {"batch": batch, "errors": errors})


_log = logging.getLogger(__name__)
# A retry would not find the object either: the batch must fail, with the reason.
_INPUT_MISSING = Problem(
    "input_missing", "The input file is no longer in the object store: upload it again."
)
_INPUT_DAMAGED = Problem(
    "input_corrupt", "The input file was changed in the object store: upload it again."
)


class Splitter:
    """Splits files, one transaction per file.

    A process that dies half-way leaves nothing behind, and the event's next delivery starts over.
    """

    def __init__(
        self,
        splits: SplitStore,
        objects: ObjectStore,
        limits: Limits,
        *,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._splits = splits
        self._objects = objects
        self._limits = limits
        self._tracer = tracer

    def split(self, batch: BatchId) -> None:
        """Queue every request of a batch's file, or fail the batch with all problems found.

        A batch that was already split, failed or cancelled is left as it is.
        """
        with self._tracer.span("split", attributes={BATCH: format_batch_id(batch)}) as span:
            self._split(batch, span)

    def _split(self, batch: BatchId, span: Span) -> None:
        with self._splits.open(batch) as split:
            if split is None:
                return
            span.note({TENANT: str(split.job.tenant)})
            reader = LineReader(self._limits, endpoint=split.job.endpoint)
            chunks = self._objects.stream(split.job.input_key)
            try:
                lines, problems = split.write(read_lines(chunks, reader)), reader.problems
            except NotFound:
                lines, problems = 0, [_INPUT_MISSING]
            except Damaged:
                lines, problems = 0, [_INPUT_DAMAGED]
            span.note({"lowtide.lines": lines, "lowtide.problems": len(problems)})
            if problems:
                split.discard()
            elif not split.start(lines, reader.model):
                return
        if problems:
            self._splits.reject(batch, problems)
            _log.info("batch.rejected", extra={"problems": len(problems)})
            return
        _log.info("batch.split", extra={"lines": lines})

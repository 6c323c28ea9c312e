"""Writing the output and error files of a drained batch."""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lowtide.batches.answers import NO_ANSWERS
from lowtide.batches.model import outcome_without_result
from lowtide.batches.results import NEVER_RAN, render_in_pieces
from lowtide.core.ids import derived_file_id, format_batch_id
from lowtide.events.model import EventType, batch_event
from lowtide.files.model import FileStatus, Purpose, StoredFile, object_key
from lowtide.objects.names import sealed_key
from lowtide.telemetry.tracing import BATCH, TENANT, UNTRACED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from uuid import UUID

    from lowtide.batches.answers import Answers
    from lowtide.batches.results import FinishedLine
    from lowtide.core.ids import BatchId
    from lowtide.events.publisher import Publisher
    from lowtide.objects.store import ObjectStore
    from lowtide.pipeline.final_store import FinalJob, FinalStore
    from lowtide.telemetry.tracing import Span, TraceContext, Tracer


_log = logging.getLogger(__name__)
_BLOCK_BYTES = 1 << 20


class Finalizer:
    """Closes drained batches.

    Idempotent: the files' ids and bytes depend on the batch alone, so a second run, even a
    concurrent one, writes the same objects, and only one of the runs changes the batch.
    """

    def __init__(
        self,
        finals: FinalStore,
        objects: ObjectStore,
        publisher: Publisher,
        *,
        new_id: Callable[[], UUID],
        answers: Answers = NO_ANSWERS,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._finals = finals
        self._objects = objects
        self._publisher = publisher
        self._new_id = new_id
        self._answers = answers
        self._tracer = tracer

    def finalize(self, batch: BatchId) -> None:
        """Write both files and close the batch; leave one that is not drained as it is."""
        with self._tracer.span("finalize", attributes={BATCH: format_batch_id(batch)}) as span:
            job = self._finals.job(batch)
            if job is not None:
                span.note({TENANT: str(job.tenant)})
                self._write(job, span)

    def _write(self, job: FinalJob, span: Span) -> None:
        dropped_as = outcome_without_result(job.final_status)
        with ExitStack() as stack:
            output = stack.enter_context(_OutputFile(self._objects, job, "output", span.context))
            error = stack.enter_context(_OutputFile(self._objects, job, "error", span.context))
            for line in self._finals.lines(job, NEVER_RAN[dropped_as]):
                file = output if line.succeeded else error
                file.add(self._rendered(job, line))
        summary = {
            "status": job.final_status.value,
            "completed": output.lines,
            "failed": error.lines,
        }
        span.note({f"lowtide.batch.{name}": value for name, value in summary.items()})
        event = batch_event(
            self._new_id(), EventType.BATCH_COMPLETED, job.tenant, job.batch, span.context
        )
        closed = self._finals.close(
            job,
            completed=output.lines,
            failed=error.lines,
            output=output.stored(),
            error=error.stored(),
            event=event,
        )
        if closed:
            _log.info("batch.finalized", extra=summary)
            self._publisher.publish([event])

    def _rendered(self, job: FinalJob, line: FinishedLine) -> Iterator[bytes]:
        if not job.zero_retention:
            return render_in_pieces(job.batch, line, lambda n: self._finals.body(job, n))
        tenant, batch = job.tenant, job.batch
        return render_in_pieces(
            batch,
            self._answers.line(tenant, batch, line),
            lambda n: self._answers.pieces(tenant, batch, n, self._finals.body(job, n)),
        )


class _OutputFile:
    """A file of results; its object is created only if there are lines for it."""

    def __init__(
        self, objects: ObjectStore, job: FinalJob, role: str, trace: TraceContext | None
    ) -> None:
        self.lines = 0
        self._trace = trace
        self._objects = objects
        self._job = job
        self._role = role
        self._id = derived_file_id(job.batch, role)
        self._key = sealed_key(job.data_key, object_key(self._id))
        self._bytes = 0
        self._sha256 = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._stack = ExitStack()
        self._write: Callable[[bytes], None] | None = None

    def __enter__(self) -> _OutputFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
            self._stack.close()
        else:
            self._stack.__exit__(kind, error, trace)

    def add(self, line: Iterable[bytes]) -> None:
        """Append a line, piece by piece, to bound memory."""
        self.lines += 1
        for piece in line:
            self._pending.append(piece)
            self._pending_bytes += len(piece)
            if self._pending_bytes >= _BLOCK_BYTES:
                self._flush()

    def stored(self) -> StoredFile | None:
        """Return the record of the file; None if it has no lines."""
        if self.lines == 0:
            return None
        return StoredFile(
            id=self._id,
            tenant=self._job.tenant,
            purpose=Purpose.BATCH_OUTPUT,
            filename=f"{format_batch_id(self._job.batch)}_{self._role}.jsonl",
            size=self._bytes,
            lines=self.lines,
            sha256=self._sha256.digest(),
            object_key=self._key,
            status=FileStatus.PROCESSED,
            status_details=None,
            created_at=self._job.drained_at,
            expires_at=self._job.files_expire_at,
            trace=self._trace,
        )

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._write is None:
            writer = self._stack.enter_context(self._objects.open_writer(self._key))
            self._write = writer.write
        block = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self._bytes += len(block)
        self._sha256.update(block)
        self._write(block)

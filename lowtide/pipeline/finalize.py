"""Writing the output and error files of a drained batch, a segment at a time."""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lowtide.batches.answers import index_entry, index_key
from lowtide.batches.model import outcome_without_result
from lowtide.batches.results import NEVER_RAN, render_in_pieces
from lowtide.batches.sealed_answers import NO_ANSWERS
from lowtide.core.ids import derived_file_id, format_batch_id
from lowtide.events.model import EventType, batch_event, segment_event
from lowtide.files.model import FileStatus, Purpose, StoredFile, object_key
from lowtide.objects.joined import Piece, joined_key
from lowtide.objects.names import sealed_key
from lowtide.pipeline.final_store import PieceRecord
from lowtide.telemetry.tracing import BATCH, TENANT, UNTRACED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime
    from types import TracebackType
    from uuid import UUID

    from lowtide.batches.results import FinishedLine
    from lowtide.batches.sealed_answers import Answers
    from lowtide.core.ids import BatchId, FileId
    from lowtide.events.publisher import Publisher
    from lowtide.objects.joined import JoinedObjects
    from lowtide.objects.store import ObjectStore
    from lowtide.pipeline.final_store import FinalJob, FinalSegment, FinalStore
    from lowtide.telemetry.tracing import Span, TraceContext, Tracer


_log = logging.getLogger(__name__)
_BLOCK_BYTES = 1 << 20
_ROLES = ("output", "error")


class Finalizer:
    """Closes drained batches, a segment at a time.

    Idempotent: ids and bytes of files depend on the batch alone, so a second run, even a concurrent
    one, writes the same objects, and only one of the runs changes the batch.
    """

    def __init__(
        self,
        finals: FinalStore,
        objects: JoinedObjects,
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

    def finalize(self, batch: BatchId, segment: int | None = None) -> None:
        """Write the pieces of one segment, and close the batch once every segment is written.

        Without `segment` the first one that is not written, and an event announces each of the
        others, except for those whose own event did so lately. A batch, or a segment of one, that is
        not drained is left as it is.
        """
        with self._tracer.span("finalize", attributes={BATCH: format_batch_id(batch)}) as span:
            job = self._finals.job(batch, segment)
            if job is None:
                return
            span.note({TENANT: str(job.tenant)})
            segments = self._finals.segments(job)
            missing = [each for each in segments if not each.is_finalized]
            if segment is None:
                missing = [each for each in missing if not each.is_announced]
                self._announce(job, missing[1:], span)
                mine = missing[:1]
            else:
                mine = [each for each in missing if each.number == segment]
            for each in mine:
                self._write(job, each, is_only=len(segments) == 1)
            # The batch may have drained meanwhile, and have left its last segment to this call.
            job = self._finals.job(batch)
            if job is not None:
                self._close(job, span)

    def _announce(self, job: FinalJob, segments: Sequence[FinalSegment], span: Span) -> None:
        events = [
            segment_event(
                self._new_id(),
                EventType.SEGMENT_DRAINED,
                job.tenant,
                job.batch,
                segment.number,
                span.context,
            )
            for segment in segments
        ]
        if events:
            self._finals.announce(events)
            self._publisher.publish(events)

    def _write(self, job: FinalJob, segment: FinalSegment, *, is_only: bool) -> None:
        keys = _keys(job, segment, is_only=is_only)
        if not self._finals.expect(job, keys):
            return
        dropped_as = outcome_without_result(job.final_status)
        end = segment.first_line + segment.lines
        with ExitStack() as stack:
            output, error, index = (stack.enter_context(_Piece(self._objects, key)) for key in keys)
            lines = self._finals.lines(job, NEVER_RAN[dropped_as], segment.first_line, end)
            for line in lines:
                piece = output if line.succeeded else error
                offset = piece.size
                piece.add(self._rendered(job, line))
                length = piece.size - offset - 1
                index.add([index_entry(offset, length, in_error_file=piece is error)])
        self._finals.finish_segment(
            job, segment, keys, output=output.record(), error=error.record()
        )

    def _close(self, job: FinalJob, span: Span) -> None:
        """Join the pieces and close the batch, unless it still runs or a segment is missing."""
        segments = self._finals.segments(job)
        if job.drained_at is None or not all(segment.is_finalized for segment in segments):
            return
        files, keys = {}, []
        for role in _ROLES:
            files[role] = file = _file(job, role, segments, job.drained_at, span.context)
            if file is not None and len(segments) > 1:
                if not self._finals.expect(job, [file.object_key]):
                    return
                self._objects.join(file.object_key, _pieces(job, role, segments))
                keys.append(file.object_key)
        for segment in segments:
            keys += _keys(job, segment, is_only=len(segments) == 1)
        summary = {
            "status": job.final_status.value,
            "completed": sum(segment.output.lines for segment in segments),
            "failed": sum(segment.error.lines for segment in segments),
        }
        span.note({f"lowtide.batch.{name}": value for name, value in summary.items()})
        event = batch_event(
            self._new_id(), EventType.BATCH_COMPLETED, job.tenant, job.batch, span.context
        )
        closed = self._finals.close(
            job,
            completed=int(summary["completed"]),
            failed=int(summary["failed"]),
            output=files["output"],
            error=files["error"],
            event=event,
            keys=keys,
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


def _record(role: str, segment: FinalSegment) -> PieceRecord:
    return segment.output if role == "output" else segment.error


def _piece_key(job: FinalJob, role: str, segment: FinalSegment, *, is_only: bool) -> str:
    key = object_key(derived_file_id(job.batch, role))
    return sealed_key(job.data_key, key if is_only else f"{key}/{segment.number:05d}")


def _keys(job: FinalJob, segment: FinalSegment, *, is_only: bool) -> list[str]:
    """Return the keys of a segment's pieces of the output and the error file, and of its index.

    The index is never encrypted: it has positions alone.
    """
    pieces = [_piece_key(job, role, segment, is_only=is_only) for role in _ROLES]
    return [*pieces, index_key(job.batch, segment.number)]


def _pieces(job: FinalJob, role: str, segments: Sequence[FinalSegment]) -> list[Piece]:
    return [
        Piece(_piece_key(job, role, segment, is_only=False), _record(role, segment).size)
        for segment in segments
        if _record(role, segment).lines
    ]


def _file_key(job: FinalJob, file: FileId, *, is_joined: bool) -> str:
    if not is_joined:
        return sealed_key(job.data_key, object_key(file))
    return joined_key(sealed_key(job.data_key, object_key(file)) if job.data_key else file.hex)


def _file(
    job: FinalJob,
    role: str,
    segments: Sequence[FinalSegment],
    created_at: datetime,
    trace: TraceContext | None,
) -> StoredFile | None:
    """Return the record of a file; None if it has no lines.

    The hash of a file in several pieces is that of the hashes of its pieces.
    """
    records = [_record(role, segment) for segment in segments]
    hashes = [record.sha256 for record in records if record.sha256 is not None]
    if not hashes:
        return None
    is_joined = len(segments) > 1
    id_ = derived_file_id(job.batch, role)
    return StoredFile(
        id=id_,
        tenant=job.tenant,
        purpose=Purpose.BATCH_OUTPUT,
        filename=f"{format_batch_id(job.batch)}_{role}.jsonl",
        size=sum(record.size for record in records),
        lines=sum(record.lines for record in records),
        sha256=hashlib.sha256(b"".join(hashes)).digest() if is_joined else hashes[0],
        object_key=_file_key(job, id_, is_joined=is_joined),
        status=FileStatus.PROCESSED,
        status_details=None,
        created_at=created_at,
        expires_at=job.files_expire_at,
        trace=trace,
    )


class _Piece:
    """An object of lines, which is created only if there are any."""

    def __init__(self, objects: ObjectStore, key: str) -> None:
        self.size = 0
        self._objects = objects
        self._key = key
        self._lines = 0
        self._sha256 = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._stack = ExitStack()
        self._write: Callable[[bytes], None] | None = None

    def __enter__(self) -> _Piece:
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
        """Append a line, part by part, to bound memory."""
        self._lines += 1
        for part in line:
            self.size += len(part)
            self._pending.append(part)
            self._pending_bytes += len(part)
            if self._pending_bytes >= _BLOCK_BYTES:
                self._flush()

    def record(self) -> PieceRecord:
        """Return what was written."""
        if not self._lines:
            return PieceRecord()
        return PieceRecord(self._lines, self.size, self._sha256.digest())

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._write is None:
            writer = self._stack.enter_context(self._objects.open_writer(self._key))
            self._write = writer.write
        block = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self._sha256.update(block)
        self._write(block)

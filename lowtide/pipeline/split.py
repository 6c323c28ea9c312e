"""Splitting a batch's file into queued requests, a segment at a time."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from lowtide.core.errors import InvalidRequest, NotFound, Unavailable
from lowtide.core.ids import format_batch_id
from lowtide.core.pools import SPOT_HOURS
from lowtide.files.index import index_key, render_rows
from lowtide.files.lines import InputLine, LineReader, Problem
from lowtide.files.validation import Validation
from lowtide.fleets.placement import place, prices_of
from lowtide.objects.names import Damaged
from lowtide.pipeline.split_store import DamagedIndex, Index
from lowtide.telemetry.tracing import BATCH, TENANT, UNTRACED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowtide.core.ids import BatchId
    from lowtide.events.publisher import Publisher
    from lowtide.files.index import SegmentSize
    from lowtide.files.lines import Limits
    from lowtide.fleets.model import Fleets
    from lowtide.fleets.placement import Placement
    from lowtide.objects.store import ObjectStore
    from lowtide.pipeline.split_store import Segment, SplitJob, SplitStore
    from lowtide.telemetry.tracing import Span, Tracer


_log = logging.getLogger(__name__)
# A retry would not find the object either: the batch must fail, with the reason.
_INPUT_MISSING = Problem(
    "input_missing", "The input file is no longer in the object store: upload it again."
)
_INPUT_DAMAGED = Problem(
    "input_corrupt", "The input file was changed in the object store: upload it again."
)
_ROWS_AT_ONCE = 1000


class _Rejected(Exception):
    """A file with problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__()
        self.problems = problems


class _Ended(Exception):
    """A batch that ended while its file was being validated."""


class Splitter:
    """Splits files, one transaction per segment.

    A process that dies half-way leaves nothing behind, and the event's next delivery starts over.
    """

    def __init__(
        self,
        splits: SplitStore,
        objects: ObjectStore,
        limits: Limits,
        fleets: Fleets,
        publisher: Publisher,
        *,
        currency: str = SPOT_HOURS,
        size: SegmentSize | None = None,
        keep_alive: float = 5.0,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._splits = splits
        self._objects = objects
        self._limits = limits
        self._fleets = fleets
        self._currency = currency
        self._publisher = publisher
        self._size = size
        self._keep_alive = keep_alive
        self._tracer = tracer

    def split(self, batch: BatchId) -> None:
        """Queue the first segment of a batch and announce the others, or fail it with all problems.

        A file without an index of the same checks is validated first. A batch that was already
        split, failed or cancelled is left as it is.
        """
        with self._tracer.span("split", attributes={BATCH: format_batch_id(batch)}) as span:
            job = self._splits.job(batch, self._limits.max_lines)
            if job is not None:
                span.note({TENANT: str(job.tenant)})
                self._split(job, span)

    def split_segment(self, batch: BatchId, number: int) -> None:
        """Queue another segment of a batch; if the batch is ending, only store its requests.

        A segment that was already split is left as it is.
        """
        attributes = {BATCH: format_batch_id(batch)}
        with self._tracer.span("split segment", attributes=attributes):
            try:
                is_queued = self._copy_segment(batch, number)
            except DamagedIndex:
                is_queued = self._repair_segment(batch, number)
            if is_queued is None:
                return
            if not is_queued:
                self._publisher.publish(self._splits.drain(batch))
            _log.info("segment.split", extra={"segment": number, "queued": is_queued})

    def _split(self, job: SplitJob, span: Span) -> None:
        try:
            try:
                if job.index is not None:
                    self._require_input(job)
                self._start(job, job.index or self._validate(job), span)
            except DamagedIndex:
                self._start(job, self._validate(job), span)
        except _Rejected as rejected:
            span.note({"lowtide.problems": len(rejected.problems)})
            self._splits.reject(job.batch, rejected.problems)
            _log.info("batch.rejected", extra={"problems": len(rejected.problems)})
        except _Ended:
            return

    def _start(self, job: SplitJob, index: Index, span: Span) -> None:
        placement = self._placement(job, index)
        with self._splits.open(job, index.segments) as split:
            if split is None:
                return
            split.copy(self._rows(job, split.segment))
            prices = prices_of(self._fleets, placement, self._currency)
            events = split.start(index, placement, prices)
        if events is None:
            return
        self._publisher.publish(events)
        lines = sum(segment.lines for segment in index.segments)
        span.note({"lowtide.lines": lines})
        _log.info("batch.split", extra={"lines": lines, "segments": len(index.segments)})

    def _placement(self, job: SplitJob, index: Index) -> Placement:
        """Return the fleets of the batch; raises _Rejected for models that none serves."""
        try:
            return place(self._fleets, index.models, job.endpoint)
        except InvalidRequest as error:
            raise _Rejected([Problem(error.code or "", error.message, "body.model")]) from error

    def _copy_segment(self, batch: BatchId, number: int) -> bool | None:
        with self._splits.open_segment(batch, number) as split:
            if split is None:
                return None
            split.copy(self._rows(split.job, split.segment))
            return split.finish()

    def _repair_segment(self, batch: BatchId, number: int) -> bool | None:
        """Split a segment whose index is damaged: write the index again.

        Without the input, nothing is known of its requests but their number: they fail like all
        requests whose input is gone.
        """
        with self._splits.open_segment(batch, number) as split:
            if split is None:
                return None
            job = split.job
        try:
            self._splits.locate_segments(batch, self._validate(job))
            return self._copy_segment(batch, number)
        except _Ended:
            pass
        except (_Rejected, DamagedIndex) as error:
            if isinstance(error, DamagedIndex) and isinstance(error.__cause__, Damaged):
                # Encrypted, the same index has other bytes each time that a segment writes it.
                raise Unavailable("The index was replaced while it was read: try again.") from error
            _log.warning("segment.lost", extra={"segment": number})
        with self._splits.open_segment(batch, number) as split:
            if split is None:
                return None
            split.copy(_unknown_rows(split.segment))
            return split.finish()

    def _rows(self, job: SplitJob, segment: Segment) -> Iterator[bytes]:
        try:
            yield from self._objects.stream(index_key(job.input_key), segment.start, segment.end)
        except (NotFound, Damaged) as error:
            raise DamagedIndex from error

    def _require_input(self, job: SplitJob) -> None:
        """Raise _Rejected if the file is gone, or cannot be decrypted."""
        try:
            self._objects.read_ranges(job.input_key, [(0, 1)])
        except NotFound as error:
            raise _Rejected([_INPUT_MISSING]) from error
        except Damaged as error:
            raise _Rejected([_INPUT_DAMAGED]) from error

    def _validate(self, job: SplitJob) -> Index:
        """Check a file and write its index; raises _Rejected, or _Ended."""
        reader = LineReader(self._limits, endpoint=job.endpoint)
        validation = Validation(self._objects, job.input_key, reader, self._size)
        self._splits.expect_index(job)
        try:
            with validation:
                for chunk in self._alive(job):
                    validation.feed(chunk)
                validation.finish()
            validation.find_repeated()
        except NotFound as error:
            raise _Rejected([_INPUT_MISSING]) from error
        except Damaged as error:
            raise _Rejected([_INPUT_DAMAGED]) from error
        if reader.problems:
            raise _Rejected(reader.problems)
        index = Index(reader.model_counts, validation.segments)
        self._splits.record_index(job, index)
        return index

    def _alive(self, job: SplitJob) -> Iterator[bytes]:
        """Yield the bytes of a file, and keep the batch from being announced again meanwhile."""
        due = time.monotonic() + self._keep_alive
        for chunk in self._objects.stream(job.input_key):
            if time.monotonic() > due:
                if not self._splits.keep_alive(job.batch):
                    raise _Ended
                due = time.monotonic() + self._keep_alive
            yield chunk


def _unknown_rows(segment: Segment) -> Iterator[bytes]:
    end = segment.first_line + segment.lines
    for start in range(segment.first_line, end, _ROWS_AT_ONCE):
        numbers = range(start, min(start + _ROWS_AT_ONCE, end))
        yield render_rows([InputLine(number, "", 0, 0) for number in numbers])

"""Turning a batch's file into queued requests."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lowtide.domain.errors import NotFound
from lowtide.domain.ids import format_batch_id
from lowtide.domain.lines import Limits, LineReader, Problem, read_lines
from lowtide.ports.tracing import BATCH, TENANT
from lowtide.services.scopes import UNTRACED

if TYPE_CHECKING:
    from lowtide.domain.ids import BatchId
    from lowtide.ports import ObjectStore, Splits
    from lowtide.ports.tracing import Span, Tracer

_log = logging.getLogger(__name__)
# No later try would find it: the batch must end, and say why.
_LOST = Problem(
    "input_missing", "The input file is no longer in the object store: upload it again."
)


class Splitter:
    """Splits files. One transaction a file: whoever dies half-way leaves nothing, and the event's
    next delivery starts over."""

    def __init__(
        self,
        splits: Splits,
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
        """Queue every line of a batch's file, or fail the batch with all problems found.

        A batch that was split, failed or cancelled before is left as it is.
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
                lines, problems = 0, [_LOST]
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

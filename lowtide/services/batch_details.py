"""Looking into one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.domain.batch_details import MOST_SHOWN, BatchDetails, LineDetails
from lowtide.domain.errors import NotFound
from lowtide.domain.pricing import cost_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import BatchId
    from lowtide.domain.pricing import Prices
    from lowtide.domain.requests import RequestState
    from lowtide.domain.statuses import RequestStatus
    from lowtide.domain.visitors import Visitor
    from lowtide.ports import BatchReading, ObjectStore
    from lowtide.services.forecasts import Forecaster


class BatchBrowser:
    """One batch, for who looks at it. Every method raises NotFound for what a visitor cannot see."""

    def __init__(
        self, reading: BatchReading, objects: ObjectStore, forecaster: Forecaster, prices: Prices
    ) -> None:
        self._reading = reading
        self._objects = objects
        self._forecaster = forecaster
        self._prices = prices

    def details(self, visitor: Visitor, batch: BatchId) -> BatchDetails:
        """Return all of a batch but its lines, with its ETA and its cost."""
        found = self._reading.details(visitor.tenant, batch)
        known = found.batch
        cost = cost_of(known.spot_seconds, known.dedicated_seconds, self._prices)
        return found.priced(self._forecaster.with_eta(known), cost)

    def lines(
        self,
        visitor: Visitor,
        batch: BatchId,
        status: RequestStatus | None,
        custom_id: str = "",
        *,
        after: int,
        limit: int,
    ) -> tuple[Sequence[RequestState], bool]:
        """Return up to `limit` lines behind line `after`, and whether there are more.

        Only those whose custom_id begins with `custom_id`.
        """
        found = self._reading.lines(
            visitor.tenant, batch, status, custom_id, after=after, limit=limit + 1
        )
        return found[:limit], len(found) > limit

    def line(self, visitor: Visitor, batch: BatchId, line: int) -> LineDetails:
        """Return a line with the beginnings of its input and its answer."""
        record = self._reading.line(visitor.tenant, batch, line)
        try:
            (content,) = self._objects.read_ranges(
                record.input_key, [(record.start, min(record.length, MOST_SHOWN))]
            )
        except NotFound:
            return LineDetails(record, None)
        return LineDetails(record, content)

    def download(
        self, visitor: Visitor, batch: BatchId, role: str
    ) -> tuple[StoredFile, Iterator[bytes]]:
        """Return the input, output or error file and its bytes, and tell the audit log."""
        file = self._reading.file(visitor.tenant, batch, role, visitor.name)
        return file, self._objects.stream(file.object_key)

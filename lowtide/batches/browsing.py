"""Browsing batches in the portal: lists, details, and cancelling many at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lowtide.batches.views import (
    COUNTED,
    MOST_SHOWN,
    BatchDetails,
    BatchFilter,
    CancelPlan,
    LineDetails,
)
from lowtide.core.errors import Conflict, NotFound
from lowtide.core.pools import cost_of
from lowtide.events.model import EventType, batch_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    from lowtide.batches.detail_store import BatchDetailStore
    from lowtide.batches.forecast import Forecaster
    from lowtide.batches.list_store import BatchListStore
    from lowtide.batches.model import Batch, RequestStatus
    from lowtide.batches.results import RequestState
    from lowtide.batches.store import BatchStore
    from lowtide.batches.views import BatchMark, BatchOrder
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.core.pools import Prices
    from lowtide.events.publisher import Publisher
    from lowtide.files.model import StoredFile
    from lowtide.objects.store import ObjectStore
    from lowtide.tenants.sign_in import Visitor


MOST_CANCELLED: Final = 1000
"""How many batches one call cancels."""


class BatchLists:
    """Lists of batches, for who looks at them."""

    def __init__(self, listing: BatchListStore) -> None:
        self._listing = listing

    def page(
        self,
        visitor: Visitor,
        wanted: BatchFilter,
        order: BatchOrder,
        *,
        after: BatchMark | None,
        limit: int,
    ) -> tuple[Sequence[Batch], bool]:
        """Return up to `limit` batches behind `after`, and whether there are more."""
        found = self._listing.page(visitor.tenant, wanted, order, after=after, limit=limit + 1)
        return found[:limit], len(found) > limit

    def count(self, visitor: Visitor, wanted: BatchFilter) -> int:
        """Return how many batches match; what is above COUNTED is only known to be more."""
        return self._listing.count(visitor.tenant, wanted, most=COUNTED + 1)

    def tenants(self, visitor: Visitor) -> Mapping[TenantId, str]:
        """Return the tenants that the visitor may choose from, by name."""
        return self._listing.tenants(visitor.tenant)


class BatchDesk:
    """Where batches are cancelled, each in a transaction of its own."""

    def __init__(
        self,
        listing: BatchListStore,
        ledger: BatchStore,
        publisher: Publisher,
        *,
        new_id: Callable[[], UUID],
    ) -> None:
        self._listing = listing
        self._ledger = ledger
        self._publisher = publisher
        self._new_id = new_id

    def plan(self, visitor: Visitor, wanted: BatchFilter | Sequence[BatchId]) -> CancelPlan:
        """Return what a cancellation would cancel, the oldest first, and change nothing.

        Raises Forbidden for a viewer.
        """
        visitor.require_operator()
        found = self._listing.cancellable(visitor.tenant, wanted, most=MOST_CANCELLED + 1)
        more = len(found) > MOST_CANCELLED
        chosen = tuple(batch for _, batch in found[:MOST_CANCELLED])
        unchanged = 0 if isinstance(wanted, BatchFilter) else len(wanted) - len(found)
        return CancelPlan(chosen, unchanged, more=more)

    def cancel(self, visitor: Visitor, batches: Sequence[BatchId]) -> int:
        """Cancel batches, up to MOST_CANCELLED; return how many changed.

        Those that are over, cancelling or another tenant's do not. Raises Forbidden for a viewer.
        """
        visitor.require_operator()
        found = self._listing.cancellable(visitor.tenant, batches, most=MOST_CANCELLED)
        return sum(self._cancel(visitor, tenant, batch) for tenant, batch in found)

    def _cancel(self, visitor: Visitor, tenant: TenantId, batch: BatchId) -> bool:
        event = batch_event(self._new_id(), EventType.BATCH_DRAINED, tenant, batch)
        try:
            cancelled, drained = self._ledger.cancel(tenant, batch, event, actor=visitor.name)
        except (Conflict, NotFound):
            return False
        if drained:
            self._publisher.publish([replace(event, trace=cancelled.trace)])
        return True


class BatchBrowser:
    """One batch, for who looks at it. Every method raises NotFound for what a visitor cannot see."""

    def __init__(
        self,
        reading: BatchDetailStore,
        objects: ObjectStore,
        forecaster: Forecaster,
        prices: Prices,
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

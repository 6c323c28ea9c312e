"""Batches in the portal: lists, details, and bulk cancellation."""

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
    from lowtide.tenants.sign_in import Principal


MOST_CANCELLED: Final = 1000
"""Max number of batches that one call cancels."""


class BatchLists:
    """Lists of the batches that a principal may see."""

    def __init__(self, listing: BatchListStore) -> None:
        self._listing = listing

    def page(
        self,
        visitor: Principal,
        wanted: BatchFilter,
        order: BatchOrder,
        *,
        after: BatchMark | None,
        limit: int,
    ) -> tuple[Sequence[Batch], bool]:
        """Return up to `limit` batches that follow `after`, and whether more follow."""
        found = self._listing.page(visitor.tenant, wanted, order, after=after, limit=limit + 1)
        return found[:limit], len(found) > limit

    def count(self, visitor: Principal, wanted: BatchFilter) -> int:
        """Count matching batches, up to COUNTED + 1."""
        return self._listing.count(visitor.tenant, wanted, most=COUNTED + 1)

    def tenants(self, visitor: Principal) -> Mapping[TenantId, str]:
        """Return the names of the tenants that the principal may filter by."""
        return self._listing.tenants(visitor.tenant)


class BatchCancellation:
    """The bulk cancellation of batches, each in its own transaction."""

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

    def plan(self, visitor: Principal, wanted: BatchFilter | Sequence[BatchId]) -> CancelPlan:
        """Return the batches that a cancellation would cancel, oldest first.

        Raises Forbidden for a viewer.
        """
        visitor.require_operator()
        found = self._listing.cancellable(visitor.tenant, wanted, most=MOST_CANCELLED + 1)
        more = len(found) > MOST_CANCELLED
        chosen = tuple(batch for _, batch in found[:MOST_CANCELLED])
        unchanged = 0 if isinstance(wanted, BatchFilter) else len(wanted) - len(found)
        return CancelPlan(chosen, unchanged, more=more)

    def cancel(self, visitor: Principal, batches: Sequence[BatchId]) -> int:
        """Cancel up to MOST_CANCELLED batches; return how many changed.

        Final, cancelling and other tenants' batches are skipped. Raises Forbidden for a viewer.
        """
        visitor.require_operator()
        found = self._listing.cancellable(visitor.tenant, batches, most=MOST_CANCELLED)
        return sum(self._cancel(visitor, tenant, batch) for tenant, batch in found)

    def _cancel(self, visitor: Principal, tenant: TenantId, batch: BatchId) -> bool:
        event = batch_event(self._new_id(), EventType.BATCH_DRAINED, tenant, batch)
        try:
            cancelled, drained = self._ledger.cancel(tenant, batch, event, actor=visitor.name)
        except (Conflict, NotFound):
            return False
        if drained:
            self._publisher.publish([replace(event, trace=cancelled.trace)])
        return True


class BatchBrowser:
    """The details of a batch. Every method raises NotFound for what the principal may not see."""

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

    def details(self, visitor: Principal, batch: BatchId) -> BatchDetails:
        """Return a batch without its requests, with its ETA and its cost."""
        found = self._reading.details(visitor.tenant, batch)
        known = found.batch
        cost = cost_of(known.spot_seconds, known.dedicated_seconds, self._prices)
        return found.priced(self._forecaster.with_eta(known), cost)

    def lines(
        self,
        visitor: Principal,
        batch: BatchId,
        status: RequestStatus | None,
        custom_id: str = "",
        *,
        after: int,
        limit: int,
    ) -> tuple[Sequence[RequestState], bool]:
        """Return up to `limit` requests after line `after`, and whether more follow.

        Only requests whose custom_id starts with `custom_id` are included.
        """
        found = self._reading.lines(
            visitor.tenant, batch, status, custom_id, after=after, limit=limit + 1
        )
        return found[:limit], len(found) > limit

    def line(self, visitor: Principal, batch: BatchId, line: int) -> LineDetails:
        """Return a request with the beginnings of its input and its response."""
        record = self._reading.line(visitor.tenant, batch, line)
        try:
            (content,) = self._objects.read_ranges(
                record.input_key, [(record.start, min(record.length, MOST_SHOWN))]
            )
        except NotFound:
            return LineDetails(record, None)
        return LineDetails(record, content)

    def download(
        self, visitor: Principal, batch: BatchId, role: str
    ) -> tuple[StoredFile, Iterator[bytes]]:
        """Return a batch's file and its bytes, and record the download in the audit log.

        `role` is input, output or error.
        """
        file = self._reading.file(visitor.tenant, batch, role, visitor.name)
        return file, self._objects.stream(file.object_key)

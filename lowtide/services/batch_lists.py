"""Looking for batches, and dealing with many at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lowtide.domain.batch_lists import COUNTED, BatchFilter, CancelPlan
from lowtide.domain.errors import Conflict, NotFound
from lowtide.domain.events import EventType, batch_event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from lowtide.domain.batch_lists import BatchMark, BatchOrder
    from lowtide.domain.batches import Batch
    from lowtide.domain.ids import BatchId, TenantId
    from lowtide.domain.visitors import Visitor
    from lowtide.ports import BatchLedger, BatchListing
    from lowtide.services.publishing import Publisher

MOST_CANCELLED: Final = 1000
"""How many batches one call cancels."""


class BatchLists:
    """Lists of batches, for who looks at them."""

    def __init__(self, listing: BatchListing) -> None:
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
        listing: BatchListing,
        ledger: BatchLedger,
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

"""What the portal reads: for one tenant, or for an operator, whose scope is None."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowtide.domain.batch_details import BatchDetails, LineRecord
    from lowtide.domain.batch_lists import BatchFilter, BatchMark, BatchOrder
    from lowtide.domain.batches import Batch
    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import BatchId, TenantId
    from lowtide.domain.requests import RequestState
    from lowtide.domain.statuses import RequestStatus


class BatchListing(Protocol):
    """Lists of batches."""

    def page(
        self,
        scope: TenantId | None,
        wanted: BatchFilter,
        order: BatchOrder,
        *,
        after: BatchMark | None,
        limit: int,
    ) -> Sequence[Batch]:
        """Return up to `limit` batches behind `after`."""
        ...

    def count(self, scope: TenantId | None, wanted: BatchFilter, *, most: int) -> int:
        """Return how many batches match, or `most` when there are more."""
        ...

    def cancellable(
        self, scope: TenantId | None, wanted: BatchFilter | Sequence[BatchId], *, most: int
    ) -> Sequence[tuple[TenantId, BatchId]]:
        """Return up to `most` of these batches that can be cancelled, oldest first."""
        ...

    def tenants(self, scope: TenantId | None) -> Mapping[TenantId, str]:
        """Return the names of tenants that an operator sees; none for anybody else."""
        ...


class BatchReading(Protocol):
    """One batch."""

    def details(self, scope: TenantId | None, batch: BatchId) -> BatchDetails:
        """Return all of a batch but its lines; raises NotFound."""
        ...

    def lines(
        self,
        scope: TenantId | None,
        batch: BatchId,
        status: RequestStatus | None,
        custom_id: str = "",
        *,
        after: int,
        limit: int,
    ) -> Sequence[RequestState]:
        """Return up to `limit` lines behind line `after`, in input order.

        Only those whose custom_id begins with `custom_id`.
        """
        ...

    def line(self, scope: TenantId | None, batch: BatchId, line: int) -> LineRecord:
        """Return a line with its answer; raises NotFound."""
        ...

    def file(self, scope: TenantId | None, batch: BatchId, role: str, actor: str) -> StoredFile:
        """Return the input, output or error file and tell the audit log; raises NotFound."""
        ...

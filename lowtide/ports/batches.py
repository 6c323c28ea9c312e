"""The records of batches, of their lines and of models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from lowtide.domain.batches import Batch, NewBatch
    from lowtide.domain.events import Event
    from lowtide.domain.ids import BatchId, TenantId
    from lowtide.domain.pools import Pool
    from lowtide.domain.promises import AdmissionPolicy
    from lowtide.domain.requests import RequestState, ResultCursor, ResultPage
    from lowtide.domain.statuses import RequestStatus


class BatchLedger(Protocol):
    """The records of batches as users see them, for one tenant at a time."""

    def create(
        self, batch: NewBatch, event: Event, policy: AdmissionPolicy | None = None
    ) -> tuple[Batch, bool]:
        """Record a batch and its event together.

        Returns the batch and whether it is new: the same idempotency key returns the first one,
        whatever the limits. Raises NotFound for an unknown input file, TooManyRequests when the
        tenant's limits leave no room, and what the policy raises; None promises anything.
        """
        ...

    def created_under(
        self, tenant: TenantId, key: str | None, digest: bytes | None
    ) -> Batch | None:
        """Return the batch with this idempotency key; raises IdempotencyKeyReused for another body's."""
        ...

    def get(self, tenant: TenantId, batch: BatchId) -> Batch:
        """Return a batch; raises NotFound."""
        ...

    def page(self, tenant: TenantId, *, after: BatchId | None, limit: int) -> Sequence[Batch]:
        """Return up to `limit` batches behind `after`, newest first."""
        ...

    def cancel(
        self, tenant: TenantId, batch: BatchId, event: Event, actor: str | None = None
    ) -> tuple[Batch, bool]:
        """Start cancelling: drop what waits, let running lines end; the audit log names `actor`.

        Returns the batch and whether nothing was running, in which case `event` was recorded.
        Raises NotFound, or Conflict when the batch is already over.
        """
        ...


class RequestCatalog(Protocol):
    """The lines of batches as users see them, for one tenant at a time."""

    def page(
        self,
        tenant: TenantId,
        batch: BatchId,
        *,
        after: int,
        limit: int,
        status: RequestStatus | None,
        pool: Pool | None,
    ) -> Sequence[RequestState]:
        """Return up to `limit` lines behind line `after`, in input order."""
        ...

    def results(
        self, tenant: TenantId, batch: BatchId, cursor: ResultCursor, limit: int, actor: str
    ) -> ResultPage:
        """Return up to `limit` results committed behind `cursor`; the audit log hears of any.

        There are fewer where bodies are long, and long ones are left out.
        """
        ...

    def body(self, tenant: TenantId, batch: BatchId, line: int) -> Iterator[str]:
        """Yield a body that was left out, in pieces; raises NotFound."""
        ...


class ModelCatalog(Protocol):
    """The models that engines serve or served."""

    def names(self, tenant: TenantId) -> Sequence[tuple[str, datetime]]:
        """Return each model that is served or that a tenant's batches named, and since when."""
        ...

    def note(self, names: Sequence[str]) -> None:
        """Add models that an engine serves."""
        ...

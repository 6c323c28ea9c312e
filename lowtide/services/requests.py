"""Looking into a batch: its lines, and its results while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowtide.domain.ids import BatchId, TenantId
    from lowtide.domain.pools import Pool
    from lowtide.domain.requests import RequestState, ResultCursor, ResultPage
    from lowtide.domain.statuses import RequestStatus
    from lowtide.ports import BatchLedger, RequestCatalog


class Requests:
    """The lines of tenants' batches."""

    def __init__(self, ledger: BatchLedger, catalog: RequestCatalog) -> None:
        self._ledger = ledger
        self._catalog = catalog

    def page(
        self,
        tenant: TenantId,
        batch: BatchId,
        *,
        after: int,
        limit: int,
        status: RequestStatus | None,
        pool: Pool | None,
    ) -> tuple[Sequence[RequestState], bool]:
        """Return up to `limit` lines behind line `after`, and whether there are more.

        Raises NotFound for an unknown batch.
        """
        self._ledger.get(tenant, batch)
        found = self._catalog.page(
            tenant, batch, after=after, limit=limit + 1, status=status, pool=pool
        )
        return found[:limit], len(found) > limit

    def results(
        self, tenant: TenantId, batch: BatchId, cursor: ResultCursor, limit: int, *, actor: str
    ) -> ResultPage:
        """Return up to `limit` results behind `cursor`, and tell the audit log of them.

        There are fewer where bodies are long, and long ones are left out.

        Raises NotFound for an unknown batch.
        """
        self._ledger.get(tenant, batch)
        return self._catalog.results(tenant, batch, cursor, limit, actor)

    def body(self, tenant: TenantId, batch: BatchId, line: int) -> Iterator[str]:
        """Yield a body that `results` left out, in pieces; raises NotFound."""
        return self._catalog.body(tenant, batch, line)

"""The list of batches: filters, paging and bulk cancellation."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide.batches.model import BatchStatus, SlaState
from lowtide.batches.views import mark_of
from lowtide.core.ids import parse_batch_id
from portal.components.basics import empty_state
from portal.components.batch_actions import BatchToolbar, cancel_batches, title_of
from portal.components.batch_table import BatchTable
from portal.components.frame import page
from portal.listing import PAGE_SIZE, Listed, ListPage
from portal.pages.landing import FIRST_COMMAND
from portal.queries import ORDERS, BatchQuery, clean
from portal.services import services_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from lowtide.batches.model import Batch
    from lowtide.batches.views import BatchOrder
    from lowtide.core.ids import BatchId, TenantId
    from portal.polling import Poller, Readings


class BatchFilters:
    """Filters by status, SLA, user and tenant, and the order; a change leads to the first page."""

    def __init__(
        self,
        query: BatchQuery,
        tenants: Sequence[str],
        *,
        on_change: Callable[[BatchQuery], Awaitable[None]],
    ) -> None:
        self._query = query
        self._on_change = on_change
        with ui.element("div").classes("filters"):
            user = ui.input("User", value=query.user, on_change=self._handler(_with_user))
            user.props("dense outlined clearable debounce=350 maxlength=256")
            self._select(
                "Status",
                {status: status.value.replace("_", " ").capitalize() for status in BatchStatus},
                list(query.statuses),
                self._handler(lambda query, chosen: replace(query, statuses=tuple(chosen or ()))),
                multiple=True,
            )
            self._select(
                "SLA",
                {state: state.value for state in SlaState},
                list(query.sla),
                self._handler(lambda query, chosen: replace(query, sla=tuple(chosen or ()))),
                multiple=True,
            )
            if len(tenants) > 1:
                names = {"": "All tenants", **{name: name for name in tenants}}
                tenant = query.tenant if query.tenant in names else ""
                self._select(
                    "Tenant",
                    names,
                    tenant,
                    self._handler(lambda query, name: replace(query, tenant=name)),
                )
            ui.checkbox(
                "All requests failed",
                value=query.all_failed,
                on_change=self._handler(lambda query, chosen: replace(query, all_failed=chosen)),
            ).props("dense")
            ui.checkbox(
                "Ended in the last 24 hours",
                value=query.ended_lately,
                on_change=self._handler(lambda query, chosen: replace(query, ended_lately=chosen)),
            ).props("dense")
            self._order = self._select(
                "Sort",
                dict(ORDERS),
                query.order,
                self._handler(lambda query, order: replace(query, order=order)),
            )

    def sort(self, order: BatchOrder) -> None:
        """Choose an order."""
        self._order.value = order

    def _select(
        self,
        label: str,
        options: dict[Any, str],
        value: object,
        change: Callable[[Any], Awaitable[None]],
        *,
        multiple: bool = False,
    ) -> ui.select:
        return ui.select(
            options, value=value, label=label, multiple=multiple, on_change=change
        ).props("dense outlined options-dense" + (" clearable" if multiple else ""))

    def _handler(
        self, change: Callable[[BatchQuery, Any], BatchQuery]
    ) -> Callable[[Any], Awaitable[None]]:
        async def handle(event: Any) -> None:
            self._query = change(self._query.behind(""), event.value)
            await self._on_change(self._query)

        return handle


def _with_user(query: BatchQuery, text: str | None) -> BatchQuery:
    return replace(query, user=clean(text or ""))


def install(poller: Poller, readings: Readings, *, api_url: str) -> None:
    """Serve the list of batches."""

    @page("/batches")
    async def batches(request: Request) -> None:
        query = BatchQuery.read(request.query_params)
        await BatchesPage(poller, readings, query).open(api_url)


class BatchesPage(ListPage[BatchQuery, "Batch"]):
    """An open list of batches, of which some can be selected and cancelled."""

    TITLE = "Batches"
    NOTHING = ""
    NO_MATCHES = "No batches match."

    def __init__(self, poller: Poller, readings: Readings, query: BatchQuery) -> None:
        super().__init__(poller, readings, query)
        self._services = services_for(self.principal)
        self._tenants: Mapping[TenantId, str] = {}
        self._selection: list[BatchId] = []

    def heading(self) -> None:
        """Build nothing."""

    def prepare(self) -> None:
        """Read the tenants to choose from."""
        self._tenants = self._services.lists.tenants(self.principal)

    def controls(self) -> None:
        """Build the filters and the toolbar."""
        self._filters = BatchFilters(
            self.query, list(self._tenants.values()), on_change=self.narrow
        )
        self._toolbar = BatchToolbar(
            may_act=self.principal.may_act, on_cancel=self._cancel, on_clear=self._choose_none
        )

    def table(self) -> None:
        """Build the list."""
        self._table = BatchTable(
            self._choose if self.principal.may_act else None,
            self._filters.sort,
            with_tenants=self.principal.tenant is None,
        )
        self._no_batches = empty_state(
            "No batches yet", "Submit a JSONL file with one request per line:", FIRST_COMMAND
        )
        self._no_batches.set_visibility(False)

    def reader(self) -> Callable[[], Listed[Batch]]:
        """Return a function that reads the page; raises NotFound for an unknown tenant."""
        principal, query, lists = self.principal, self.query, self._services.lists
        batch_filter = query.filter(self._tenants)

        def read() -> Listed[Batch]:
            batches, more = lists.page(
                principal, batch_filter, query.order, after=query.mark, limit=PAGE_SIZE
            )
            if not self._tenants.keys() >= {batch.tenant for batch in batches}:
                self._tenants = lists.tenants(principal)
            return Listed(batches, more, lists.count(principal, batch_filter))

        return read

    def show(self, listed: Listed[Batch]) -> None:
        """Show these batches."""
        self._table.show(listed.items, datetime.now(UTC), self._tenants, self.query.order)
        self._table.set_visibility(bool(listed.items))
        self._toolbar.show(listed.count, len(self._selection), len(listed.items))

    def show_empty(self, text: str) -> None:
        """Show a text, or the command that submits a first batch."""
        super().show_empty(text)
        listed = self.listed
        is_empty = listed is not None and not listed.items and not self.query.narrows
        self._no_batches.set_visibility(is_empty)

    def mark(self, item: Batch) -> str:
        """Return the cursor after a batch."""
        return str(mark_of(item))

    async def navigate(self, query: BatchQuery) -> None:
        """Show another page; a selection is of one page."""
        self._choose_none()
        await super().navigate(query)

    def _choose(self, ids: Sequence[str]) -> None:
        self._selection = [batch for text in ids if (batch := parse_batch_id(text)) is not None]
        if (listed := self.listed) is not None:
            self._toolbar.show(listed.count, len(self._selection), len(listed.items))

    def _choose_none(self) -> None:
        self._selection = []
        self._table.choose_none()
        self._toolbar.choose_none()

    async def _cancel(self, *, everything: bool) -> None:
        selection = self.query.filter(self._tenants) if everything else self._selection
        listed = () if self.listed is None else self.listed.items
        titles = {
            batch.id: title_of(batch, self._tenants.get(batch.tenant, "")) for batch in listed
        }
        if await cancel_batches(self._services.cancellation, selection, titles):
            self._choose_none()
            await self.reload()

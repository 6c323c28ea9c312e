"""Tenants: their limits and weight, and what they use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide import wiring
from lowtide.domain.errors import LowtideError
from portal.administration_query import TENANTS, TenantQuery
from portal.batch_query import clean
from portal.components.tenant_form import TenantForm
from portal.components.tenant_table import TenantTable
from portal.listing import PAGE_SIZE, ListPage
from portal.sessions import current_visitor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.services.administration import PricedUse
    from portal.watching import Watching


def install(watching: Watching, *, api_url: str) -> None:
    """Serve the page of tenants."""

    @ui.page(TENANTS)
    async def tenants(request: Request) -> None:
        query = TenantQuery.read(request.query_params)
        await TenantsPage(watching.poller, watching.readings, query).open(api_url)


class TenantsPage(ListPage[TenantQuery, "PricedUse"]):
    """One open page."""

    TITLE = "Tenants"
    NOTHING = "No tenants yet."

    def prepare(self) -> None:
        """Read nothing: the controls need nothing."""

    def controls(self) -> None:
        """Lay out the search, and the way to a new tenant."""
        with ui.element("div").classes("filters").props("role=search"):
            box = ui.input("Name contains", value=self.query.text)
            box.props("dense outlined clearable debounce=350 data-search maxlength=63")
            box.on_value_change(lambda event: self._search(clean(event.value or "")))
            with ui.element("div").classes("actions end"):
                if self.visitor.may_act:
                    ui.button("New tenant …", on_click=self._create).props("unelevated no-caps")

    def table(self) -> None:
        """Lay out the list."""
        self._table = TenantTable(self._edit if self.visitor.may_act else None)
        self._shown: Sequence[PricedUse] = ()
        ui.label(
            "Open lines have no result yet. Lines, tokens and cost of 24 hours are those of batches "
            "that ended within them or are not over."
        ).classes("muted small table-note")

    def reader(self) -> Callable[[], tuple[Sequence[PricedUse], bool]]:
        """Return what reads the page."""
        visitor, query, admin = self.visitor, self.query, wiring.administration()
        return lambda: admin.tenants(
            visitor, query.text, after=query.after or None, limit=PAGE_SIZE
        )

    def show(self, items: Sequence[PricedUse]) -> None:
        """Show these."""
        self._shown = items
        self._table.show(items)

    def mark(self, item: PricedUse) -> str:
        """Return the tenant's name."""
        return item.use.tenant.name

    async def _search(self, text: str) -> None:
        await self.narrow(replace(self.query, text=text))

    async def _create(self) -> None:
        self._open(None)

    async def _edit(self, name: str) -> None:
        self._open(name)

    def _open(self, name: str | None) -> None:
        try:
            defaults = wiring.administration().acting(current_visitor()).defaults
        except LowtideError as error:
            ui.notify(error.message, type="negative")
            return
        known = {priced.use.tenant.name: priced.use.tenant for priced in self._shown}
        if name is None or name in known:
            TenantForm(None if name is None else known[name], defaults, self.reload)

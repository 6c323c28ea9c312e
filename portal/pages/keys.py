"""API keys of all tenants: made, rotated and revoked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide import wiring
from lowtide.domain.api_keys import KeyState
from portal.administration_query import KEYS, KeyQuery, key_mark
from portal.batch_query import clean
from portal.components.key_dialogs import NewKey, revoke, rotate
from portal.components.key_table import KeyTable
from portal.components.tenant_choice import tenant_choice
from portal.listing import PAGE_SIZE, ListPage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lowtide.domain.api_keys import TenantKey
    from lowtide.domain.ids import TenantId
    from portal.watching import Watching


def install(watching: Watching, *, api_url: str) -> None:
    """Serve the page of keys."""

    @ui.page(KEYS)
    async def keys(request: Request) -> None:
        query = KeyQuery.read(request.query_params)
        await KeysPage(watching.poller, watching.readings, query).open(api_url)


class KeysPage(ListPage[KeyQuery, "TenantKey"]):
    """One open page."""

    TITLE = "API keys"
    NOTHING = "No keys yet."
    _tenants: Mapping[TenantId, str]
    _shown: Sequence[TenantKey] = ()

    def prepare(self) -> None:
        """Read the tenants to choose from."""
        self._tenants = {}
        self._tenants = wiring.administration().names(self.visitor)

    def controls(self) -> None:
        """Lay out the filters, and the way to a new key."""
        with ui.element("div").classes("filters").props("role=search"):
            box = ui.input("Name contains, or key begins with", value=self.query.text)
            box.props("dense outlined clearable debounce=350 data-search maxlength=63")
            box.on_value_change(lambda event: self._search(clean(event.value or "")))
            tenant_choice(
                list(self._tenants.values()),
                self.query.tenant,
                self._choose_tenant,
            )
            ui.select(
                {"": "All states", **{state.value: state.value.capitalize() for state in KeyState}},
                value=self.query.state or "",
                label="State",
                on_change=lambda event: self._choose_state(event.value or ""),
            ).props("dense outlined options-dense")
            with ui.element("div").classes("actions end"):
                if self.visitor.may_act and self._tenants:
                    ui.button("New key …", on_click=self._create).props("unelevated no-caps")

    def table(self) -> None:
        """Lay out the list."""
        may_act = self.visitor.may_act
        self._table = KeyTable(self._rotate if may_act else None, self._revoke if may_act else None)

    def reader(self) -> Callable[[], tuple[Sequence[TenantKey], bool]]:
        """Return what reads the page; raises NotFound for an unknown tenant."""
        visitor, wanted = self.visitor, self.query.filter(self._tenants)
        after, admin = self.query.mark(), wiring.administration()
        return lambda: admin.keys(visitor, wanted, after=after, limit=PAGE_SIZE)

    def show(self, items: Sequence[TenantKey]) -> None:
        """Show these."""
        self._shown = items
        self._table.show(items)

    def mark(self, item: TenantKey) -> str:
        """Return the mark at a key."""
        return key_mark(item)

    async def _search(self, text: str) -> None:
        await self.narrow(replace(self.query, text=text))

    async def _choose_tenant(self, name: str) -> None:
        await self.narrow(replace(self.query, tenant=name))

    async def _choose_state(self, name: str) -> None:
        await self.narrow(replace(self.query, state=KeyState(name) if name else None))

    async def _create(self) -> None:
        NewKey(list(self._tenants.values()), self.query.tenant, self.reload)

    async def _rotate(self, key: str) -> None:
        for found in self._named(key):
            await rotate(found, self.reload)

    async def _revoke(self, key: str) -> None:
        for found in self._named(key):
            await revoke(found, self.reload)

    def _named(self, key: str) -> list[TenantKey]:
        return [found for found in self._shown if found.key.id.hex == key]

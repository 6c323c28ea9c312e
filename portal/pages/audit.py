"""The audit log: who did what, newest first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide import wiring
from portal.administration_query import AUDIT, AuditQuery
from portal.batch_query import clean
from portal.components.audit_table import AuditTable
from portal.components.tenant_choice import tenant_choice
from portal.listing import PAGE_SIZE, ListPage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lowtide.domain.audit import AuditEntry
    from lowtide.domain.ids import TenantId
    from portal.watching import Watching


def install(watching: Watching, *, api_url: str) -> None:
    """Serve the audit log."""

    @ui.page(AUDIT)
    async def audit(request: Request) -> None:
        query = AuditQuery.read(request.query_params)
        await AuditPage(watching.poller, watching.readings, query).open(api_url)


class AuditPage(ListPage[AuditQuery, "AuditEntry"]):
    """One open page."""

    TITLE = "Audit log"
    NOTHING = "Nothing was done yet."
    _tenants: Mapping[TenantId, str]
    _actions: Sequence[str]

    def prepare(self) -> None:
        """Read the tenants and actions to choose from."""
        self._tenants, self._actions = {}, ()
        admin = wiring.administration()
        self._tenants, self._actions = admin.names(self.visitor), admin.actions(self.visitor)

    def controls(self) -> None:
        """Lay out the filters."""
        actions = dict.fromkeys(("", *self._actions, self.query.action))
        with ui.element("div").classes("filters").props("role=search"):
            box = ui.input("Who, exactly", value=self.query.actor)
            box.props("dense outlined clearable debounce=350 data-search maxlength=256")
            box.on_value_change(lambda event: self._narrow(actor=clean(event.value or "")))
            ui.select(
                {action: action or "All actions" for action in actions},
                value=self.query.action,
                label="What",
                on_change=lambda event: self._narrow(action=event.value or ""),
            ).props("dense outlined options-dense")
            tenant_choice(
                list(self._tenants.values()),
                self.query.tenant,
                lambda name: self._narrow(tenant=name),
            )

    def table(self) -> None:
        """Lay out the list."""
        self._table = AuditTable()

    def reader(self) -> Callable[[], tuple[Sequence[AuditEntry], bool]]:
        """Return what reads the page; raises NotFound for an unknown tenant."""
        visitor, wanted = self.visitor, self.query.filter(self._tenants)
        after, admin = self.query.mark(), wiring.administration()
        return lambda: admin.audit(visitor, wanted, after=after, limit=PAGE_SIZE)

    def show(self, items: Sequence[AuditEntry]) -> None:
        """Show these."""
        self._table.show(items)

    def mark(self, item: AuditEntry) -> str:
        """Return the entry's number."""
        return str(item.id)

    async def _narrow(self, **changes: str) -> None:
        await self.narrow(replace(self.query, **changes))

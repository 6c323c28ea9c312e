"""The audit log: every change, newest first."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypedDict
from urllib.parse import urlencode

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from portal.components.frame import page
from portal.formats import absolute, utc
from portal.listing import PAGE_SIZE, Listed, ListPage, tenant_choice
from portal.pages.administration import AUDIT, AuditQuery
from portal.queries import clean
from portal.services import lowtide

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lowtide.core.ids import TenantId
    from lowtide.tenants.audit import AuditEntry
    from portal.watching import Watching


_BATCH: Final = re.compile(r"batch_[0-9a-f]{32}")


class AuditRow(TypedDict):
    """An audit entry as a table row."""

    id: int
    at: str
    at_utc: str
    tenant: str
    actor: str
    by_actor: str
    action: str
    subject: str
    batch: str


_LABELS: Final = {
    "at": "Time",
    "tenant": "Tenant",
    "actor": "Actor",
    "action": "Action",
    "subject": "Subject",
}
_CELLS: Final = {
    "at": '<span class="nowrap" :title="props.row.at_utc">{{ props.row.at }}</span>',
    "tenant": '<span class="user ellipsis" :title="props.row.tenant">{{ props.row.tenant }}</span>',
    "actor": '<a class="link break actor" :href="props.row.by_actor">{{ props.row.actor }}</a>',
    "action": '<span class="mono small nowrap">{{ props.row.action }}</span>',
    "subject": '<span class="break small">{{ props.row.subject }}</span>'
    '<a v-if="props.row.batch" class="link small nowrap" :href="props.row.batch">View batch</a>',
}
_NARROW: Final = f"""
<div class="batch-item">
  <div class="batch-line">{_CELLS["action"]}<span class="muted small">{_CELLS["at"]}</span></div>
  <div class="batch-line">{_CELLS["tenant"]}{_CELLS["actor"]}</div>
  {_CELLS["subject"]}
</div>
"""


class AuditTable:
    """Audit entries in the given order."""

    def __init__(self) -> None:
        self._rows: list[AuditRow] | None = None
        columns = [
            {"name": name, "label": label, "field": name, "align": "left"}
            for name, label in _LABELS.items()
        ]
        self._table = ui.table(rows=[], columns=columns, row_key="id").props(
            'flat wrap-cells hide-pagination :rows-per-page-options="[0]" :grid="Quasar.Screen.width < 1000"'
        )
        for name, cell in _CELLS.items():
            self._table.add_slot(
                f"body-cell-{name}", f'<q-td :props="props"><div class="stack">{cell}</div></q-td>'
            )
        self._table.add_slot("item", _NARROW)

    def show(self, entries: Sequence[AuditEntry]) -> None:
        """Show these entries; nothing is sent while they stay the same."""
        rows = [row_of(entry) for entry in entries]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]
        self._table.set_visibility(bool(rows))


def row_of(entry: AuditEntry) -> AuditRow:
    """Return the table row of an entry."""
    batch = _BATCH.search(entry.subject)
    return AuditRow(
        id=entry.id,
        at=absolute(entry.at),
        at_utc=utc(entry.at),
        tenant=entry.tenant or "all tenants",
        actor=entry.actor,
        by_actor=f"/audit?{urlencode({'actor': entry.actor})}",
        action=entry.action,
        subject=entry.subject,
        batch="" if batch is None else f"/batches/{batch[0]}",
    )


def install(watching: Watching, *, api_url: str) -> None:
    """Serve the audit log."""

    @page(AUDIT)
    async def audit(request: Request) -> None:
        query = AuditQuery.read(request.query_params)
        await AuditPage(watching.poller, watching.readings, query).open(api_url)


class AuditPage(ListPage[AuditQuery, "AuditEntry"]):
    """An open audit log."""

    TITLE = "Audit log"
    NOTHING = "No audit entries yet."
    _tenants: Mapping[TenantId, str]
    _actions: Sequence[str]

    def prepare(self) -> None:
        """Read the tenants and actions to choose from."""
        self._tenants, self._actions = {}, ()
        admin = lowtide().administration
        self._tenants, self._actions = admin.names(self.principal), admin.actions(self.principal)

    def controls(self) -> None:
        """Build the filters."""
        actions = dict.fromkeys(("", *self._actions, self.query.action))
        with ui.element("div").classes("filters").props("role=search"):
            box = ui.input("Actor (exact)", value=self.query.actor)
            box.props("dense outlined clearable debounce=350 maxlength=256")
            box.on_value_change(lambda event: self._narrow(actor=clean(event.value or "")))
            ui.select(
                {action: action or "All actions" for action in actions},
                value=self.query.action,
                label="Action",
                on_change=lambda event: self._narrow(action=event.value or ""),
            ).props("dense outlined options-dense")
            tenant_choice(
                list(self._tenants.values()),
                self.query.tenant,
                lambda name: self._narrow(tenant=name),
            )

    def table(self) -> None:
        """Build the list."""
        self._table = AuditTable()

    def reader(self) -> Callable[[], Listed[AuditEntry]]:
        """Return a function that reads the page; raises NotFound for an unknown tenant."""
        principal, audit_filter = self.principal, self.query.filter(self._tenants)
        after, admin = self.query.mark(), lowtide().administration
        return lambda: Listed(*admin.audit(principal, audit_filter, after=after, limit=PAGE_SIZE))

    def show(self, listed: Listed[AuditEntry]) -> None:
        """Show these entries."""
        self._table.show(listed.items)

    def mark(self, item: AuditEntry) -> str:
        """Return the entry's id."""
        return str(item.id)

    async def _narrow(self, **changes: str) -> None:
        await self.narrow(replace(self.query, **changes))

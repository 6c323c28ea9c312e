"""The tenants page: limits, weight and usage."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypedDict
from urllib.parse import urlencode

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide.core.errors import LowtideError
from portal.components.frame import page
from portal.formats import absolute, counted, money, number, utc
from portal.listing import PAGE_SIZE, Listed, ListPage
from portal.pages.administration import (
    TENANTS,
    TenantQuery,
    tenancy_of_principal,
    usage_address,
)
from portal.pages.tenant_form import TenantForm
from portal.queries import clean
from portal.services import lowtide

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lowtide.tenants.model import TenantUse
    from portal.watching import Watching


class Meter(TypedDict):
    """The usage of a limit; without a limit there is no bar."""

    used: str
    limit: str
    width: str
    percent: int
    full: bool
    limited: bool


class TenantRow(TypedDict):
    """A tenant as a table row."""

    name: str
    since: str
    since_utc: str
    batches: str
    usage: str
    keys: str
    weight: str
    requests: Meter
    active: Meter
    queued: Meter
    running: Meter
    day: str
    tokens: str
    cost: str


_LABELS: Final = {
    "name": "Tenant",
    "weight": "Weight",
    "requests": "Requests/min",
    "active": "Active batches",
    "queued": "Unfinished requests",
    "running": "Running requests",
    "day": "Last 24 hours",
    "cost": "Cost",
    "actions": "Actions",
}
_METERS: Final = ("requests", "active", "queued", "running")
_NAME: Final = (
    '<a class="user ellipsis link" :href="props.row.batches" :title="props.row.name">'
    "{{ props.row.name }}</a>"
)
_SINCE: Final = '<span class="muted small nowrap" :title="props.row.since_utc">created {{ props.row.since }}</span>'
_DAY: Final = (
    '<span class="nowrap">{{ props.row.day }}</span>'
    '<span class="muted small nowrap">{{ props.row.tokens }}</span>'
)
_USAGE: Final = '<a class="link small" :href="props.row.usage" :aria-label="`Usage of ${props.row.name}`">Usage</a>'
_KEYS: Final = '<a class="link small" :href="props.row.keys" :aria-label="`Keys of ${props.row.name}`">Keys</a>'
_EDIT: Final = (
    '<q-btn class="act" flat dense no-caps label="Edit…" :aria-label="`Edit ${props.row.name}`" '
    "@click=\"() => $parent.$emit('edit', props.row.name)\" />"
)


def _meter(name: str) -> str:
    return f"""
<div class="meter"><span class="nowrap">{{{{ props.row.{name}.used }}}}
  <span class="muted small">{{{{ props.row.{name}.limit }}}}</span></span>
  <div v-if="props.row.{name}.limited" class="bar" role="progressbar" aria-valuemin="0"
    aria-valuemax="100" :aria-valuenow="props.row.{name}.percent"
    :aria-label="`{_LABELS[name]} of ${{props.row.name}}`">
    <div :class="props.row.{name}.full ? 'fill-warn' : 'fill-info'"
      :style="{{ width: props.row.{name}.width }}"></div></div></div>
"""


def _narrow(edit: str) -> str:
    meters = "".join(
        f'<div class="figure-line"><span class="muted small">{_LABELS[name]}</span>{_meter(name)}</div>'
        for name in _METERS
    )
    return f"""
<div class="batch-item">
  <div class="batch-line">{_NAME}<span class="muted small nowrap">weight {{{{ props.row.weight }}}}</span></div>
  <div class="figures">{meters}</div>
  <div class="batch-notes"><span class="muted small">last 24 hours</span><span>{{{{ props.row.day }}}}</span>
    <span class="muted">{{{{ props.row.tokens }}}}</span><span>{{{{ props.row.cost }}}}</span></div>
  <div class="batch-line"><span class="links">{_USAGE} · {_KEYS}</span>{edit}</div>
</div>
"""


class TenantTable:
    """Tenants by name; `on_edit` receives the name of the one to change, None allows no change."""

    def __init__(self, on_edit: Callable[[str], Awaitable[None]] | None) -> None:
        self._rows: list[TenantRow] | None = None
        edit = "" if on_edit is None else _EDIT
        columns = [
            {"name": name, "label": label, "field": name, "align": "left"}
            for name, label in _LABELS.items()
            if name != "actions" or on_edit is not None
        ]
        cells = {
            "name": f'{_NAME}{_SINCE}<span class="links">{_USAGE} · {_KEYS}</span>',
            **{name: _meter(name) for name in _METERS},
            "day": _DAY,
            "cost": '<span class="nowrap">{{ props.row.cost }}</span>',
            "actions": edit,
        }
        self._table = ui.table(rows=[], columns=columns, row_key="name").props(
            'flat hide-pagination :rows-per-page-options="[0]" :grid="Quasar.Screen.width < 1100"'
        )
        for name, cell in cells.items():
            self._table.add_slot(
                f"body-cell-{name}", f'<q-td :props="props"><div class="stack">{cell}</div></q-td>'
            )
        self._table.add_slot("item", _narrow(edit))
        if on_edit is not None:
            self._table.on("edit", lambda event: on_edit(str(event.args)))

    def show(self, tenants: Sequence[TenantUse]) -> None:
        """Show these tenants; nothing is sent while they stay the same."""
        rows = [row_of(use) for use in tenants]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]
        self._table.set_visibility(bool(rows))


def row_of(use: TenantUse) -> TenantRow:
    """Return the table row of a tenant."""
    limits = use.tenant.limits
    name = use.tenant.name
    tokens = number(use.input_tokens + use.output_tokens)
    return TenantRow(
        name=name,
        since=absolute(use.tenant.created_at),
        since_utc=utc(use.tenant.created_at),
        batches=f"/batches?{urlencode({'tenant': name})}",
        usage=usage_address(name),
        keys=f"/keys?{urlencode({'tenant': name})}",
        weight=number(use.tenant.weight),
        requests=meter(use.requests, limits.requests_per_minute),
        active=meter(use.active_batches, limits.active_batches),
        queued=meter(use.waiting_lines + use.running_lines, limits.queued_lines),
        running=meter(use.running_lines, limits.running_lines),
        day=counted(use.lines, "request"),
        tokens=f"{tokens} tokens",
        cost=f"{money(use.cost)} {lowtide().administration.currency}",
    )


def meter(used: float | None, limit: int | None) -> Meter:
    """Return the usage of a limit; `used` is None for API requests without one."""
    share = 0.0 if used is None or limit is None else min(used / limit, 1.0)
    return Meter(
        used="—" if used is None else number(int(used)) if used == int(used) else f"{used:,.2f}",
        limit="no limit" if limit is None else f"of {number(limit)}",
        width=f"{share:.1%}",
        percent=int(100 * share),
        full=share >= 1.0,
        limited=limit is not None,
    )


def install(watching: Watching, *, api_url: str) -> None:
    """Serve the tenants page."""

    @page(TENANTS)
    async def tenants(request: Request) -> None:
        query = TenantQuery.read(request.query_params)
        await TenantsPage(watching.poller, watching.readings, query).open(api_url)


class TenantsPage(ListPage[TenantQuery, "TenantUse"]):
    """An open tenants page."""

    TITLE = "Tenants"
    NOTHING = "No tenants yet."

    def prepare(self) -> None:
        """Read nothing: the controls need no data."""

    def controls(self) -> None:
        """Build the search box and the button for a new tenant."""
        with ui.element("div").classes("filters").props("role=search"):
            box = ui.input("Name contains", value=self.query.text)
            box.props("dense outlined clearable debounce=350 maxlength=63")
            box.on_value_change(lambda event: self._search(clean(event.value or "")))
            with ui.element("div").classes("actions end"):
                if self.principal.may_administer:
                    ui.button("New tenant…", on_click=self._create).props("unelevated no-caps")

    def table(self) -> None:
        """Build the list."""
        self._table = TenantTable(self._edit if self.principal.may_administer else None)
        self._items: Sequence[TenantUse] = ()
        ui.label(
            "Unfinished requests have no result yet. Requests, tokens and cost of the last 24 hours are "
            "those of batches that ended in that time or are still active."
        ).classes("muted small table-note")

    def reader(self) -> Callable[[], Listed[TenantUse]]:
        """Return a function that reads the page."""
        principal, query, admin = self.principal, self.query, lowtide().administration
        return lambda: Listed(
            *admin.tenants(principal, query.text, after=query.after or None, limit=PAGE_SIZE)
        )

    def show(self, listed: Listed[TenantUse]) -> None:
        """Show these tenants."""
        self._items = listed.items
        self._table.show(listed.items)

    def mark(self, item: TenantUse) -> str:
        """Return the tenant's name."""
        return item.tenant.name

    async def _search(self, text: str) -> None:
        await self.narrow(replace(self.query, text=text))

    async def _create(self) -> None:
        self._open(None)

    async def _edit(self, name: str) -> None:
        self._open(name)

    def _open(self, name: str | None) -> None:
        try:
            defaults = tenancy_of_principal().defaults
        except LowtideError as error:
            ui.notify(error.message, type="negative")
            return
        by_name = {use.tenant.name: use.tenant for use in self._items}
        if name is None or name in by_name:
            TenantForm(None if name is None else by_name[name], defaults, self.reload)

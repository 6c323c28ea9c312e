"""The keys page: create, rotate and revoke the API keys of all tenants."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypedDict

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide.tenants.keys import KeyState
from portal.components.basics import BADGE_CELL, Badge
from portal.components.frame import page
from portal.formats import ago, hint, rough
from portal.listing import PAGE_SIZE, Listed, ListPage, tenant_choice
from portal.pages.administration import KEYS, KeyQuery, key_mark
from portal.pages.key_dialogs import NewKey, revoke, rotate
from portal.queries import clean
from portal.services import lowtide
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

    from lowtide.core.ids import TenantId
    from lowtide.tenants.keys import TenantKey
    from portal.watching import Watching


_TONES: Final[Mapping[KeyState, Tone]] = {
    KeyState.ACTIVE: Tone.GOOD,
    KeyState.EXPIRING: Tone.WARN,
    KeyState.EXPIRED: Tone.NEUTRAL,
    KeyState.REVOKED: Tone.NEUTRAL,
}


class KeyRow(TypedDict):
    """A key as a table row."""

    id: str
    short: str
    name: str
    prefix: str
    tenant: str
    state: Badge
    scopes: str
    created: str
    created_at: str
    used: str
    used_at: str
    ends: str
    ends_at: str
    opens: bool
    active: bool


_LABELS: Final = {
    "name": "Key",
    "tenant": "Tenant",
    "state": "State",
    "scopes": "Scopes",
    "created": "Created",
    "used": "Last used",
    "actions": "Actions",
}
_NAME: Final = (
    '<span class="user ellipsis" :title="props.row.name"><b>{{ props.row.name }}</b></span>'
    '<span class="mono muted small" :title="props.row.id">{{ props.row.prefix }} '
    "({{ props.row.short }})</span>"
)
_TENANT: Final = (
    '<span class="user ellipsis" :title="props.row.tenant">{{ props.row.tenant }}</span>'
)
_STATE: Final = (
    BADGE_CELL.replace("badge.", "props.row.state.")
    + '<span v-if="props.row.ends" class="muted small nowrap" :title="props.row.ends_at">'
    "{{ props.row.ends }}</span>"
)
_SCOPES: Final = '<span class="mono small">{{ props.row.scopes }}</span>'
_CREATED: Final = (
    '<span class="nowrap" :title="props.row.created_at">{{ props.row.created }}</span>'
)
_USED: Final = '<span class="nowrap" :title="props.row.used_at">{{ props.row.used }}</span>'


def _action(event: str, label: str, condition: str) -> str:
    return (
        f'<q-btn v-if="props.row.{condition}" class="act" flat dense no-caps label="{label}…" '
        f':aria-label="`{label} ${{props.row.name}} of ${{props.row.tenant}} '
        '(${props.row.short})`" '
        f"@click=\"() => $parent.$emit('{event}', props.row.id)\" />"
    )


_ACTIONS: Final = (
    '<span class="nowrap">'
    + _action("rotate", "Rotate", "active")
    + _action("revoke", "Revoke", "opens")
    + "</span>"
)


def _narrow(actions: str) -> str:
    return f"""
<div class="batch-item">
  <div class="batch-line"><span class="stack">{_NAME}</span><span class="stack">{_STATE}</span></div>
  <div class="batch-line">{_TENANT}{_SCOPES}</div>
  <span class="muted small">created {_CREATED} · last used {_USED}</span>
  {actions}
</div>
"""


class KeyTable:
    """Keys in the given order; the callbacks receive a key's id, None allows no change."""

    def __init__(
        self,
        on_rotate: Callable[[str], Awaitable[None]] | None,
        on_revoke: Callable[[str], Awaitable[None]] | None,
    ) -> None:
        self._rows: list[KeyRow] | None = None
        may_act = on_rotate is not None and on_revoke is not None
        actions = _ACTIONS if may_act else ""
        columns = [
            {"name": name, "label": label, "field": name, "align": "left"}
            for name, label in _LABELS.items()
            if name != "actions" or may_act
        ]
        cells = {
            "name": _NAME,
            "tenant": _TENANT,
            "state": _STATE,
            "scopes": _SCOPES,
            "created": _CREATED,
            "used": _USED,
            "actions": actions,
        }
        self._table = ui.table(rows=[], columns=columns, row_key="id").props(
            'flat hide-pagination :rows-per-page-options="[0]" :grid="Quasar.Screen.width < 1000"'
        )
        for name, cell in cells.items():
            self._table.add_slot(
                f"body-cell-{name}", f'<q-td :props="props"><div class="stack">{cell}</div></q-td>'
            )
        self._table.add_slot("item", _narrow(actions))
        for event, act in (("rotate", on_rotate), ("revoke", on_revoke)):
            if act is not None:
                self._table.on(event, lambda event, act=act: act(str(event.args)))

    def show(self, keys: Sequence[TenantKey]) -> None:
        """Show these keys; nothing is sent while they stay the same."""
        rows = [row_of(tenant_key) for tenant_key in keys]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]
        self._table.set_visibility(bool(rows))


def row_of(tenant_key: TenantKey) -> KeyRow:
    """Return the table row of a key."""
    key, now, state = tenant_key.key, tenant_key.at, tenant_key.state
    return KeyRow(
        id=key.id.hex,
        short=key.id.hex[:8],
        name=key.name,
        prefix="" if key.prefix is None else f"{key.prefix}…",
        tenant=tenant_key.tenant,
        state=Badge(text=state.value.capitalize(), tone=_TONES[state]),
        scopes="everything" if key.scopes is None else " ".join(key.scopes),
        created=ago(key.created_at, now),
        created_at=hint(key.created_at),
        used="never" if key.last_used_at is None else ago(key.last_used_at, now),
        used_at="" if key.last_used_at is None else hint(key.last_used_at),
        ends=_ends(tenant_key),
        ends_at=_moment(key.revoked_at or key.expires_at),
        opens=state in (KeyState.ACTIVE, KeyState.EXPIRING),
        active=state is KeyState.ACTIVE,
    )


def _ends(tenant_key: TenantKey) -> str:
    key = tenant_key.key
    if key.revoked_at is not None:
        return ago(key.revoked_at, tenant_key.at)
    if key.expires_at is None:
        return ""
    remaining = key.expires_at - tenant_key.at
    return (
        f"in {rough(remaining)}"
        if remaining.total_seconds() > 0
        else ago(key.expires_at, tenant_key.at)
    )


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else hint(moment)


def install(watching: Watching, *, api_url: str) -> None:
    """Serve the keys page."""

    @page(KEYS)
    async def keys(request: Request) -> None:
        query = KeyQuery.read(request.query_params)
        await KeysPage(watching.poller, watching.readings, query).open(api_url)


class KeysPage(ListPage[KeyQuery, "TenantKey"]):
    """An open keys page."""

    TITLE = "API keys"
    NOTHING = "No API keys yet."
    _tenants: Mapping[TenantId, str]
    _keys: Sequence[TenantKey] = ()

    def prepare(self) -> None:
        """Read the tenants to choose from."""
        self._tenants = {}
        self._tenants = lowtide().administration.names(self.principal)

    def controls(self) -> None:
        """Build the filters and the button for a new key."""
        with ui.element("div").classes("filters").props("role=search"):
            box = ui.input("Name contains or key starts with", value=self.query.text)
            box.props("dense outlined clearable debounce=350 maxlength=63")
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
                if self.principal.may_administer and self._tenants:
                    ui.button("New key…", on_click=self._create).props("unelevated no-caps")

    def table(self) -> None:
        """Build the list."""
        may_act = self.principal.may_administer
        self._table = KeyTable(self._rotate if may_act else None, self._revoke if may_act else None)

    def reader(self) -> Callable[[], Listed[TenantKey]]:
        """Return a function that reads the page; raises NotFound for an unknown tenant."""
        principal, key_filter = self.principal, self.query.filter(self._tenants)
        after, admin = self.query.mark(), lowtide().administration
        return lambda: Listed(*admin.keys(principal, key_filter, after=after, limit=PAGE_SIZE))

    def show(self, listed: Listed[TenantKey]) -> None:
        """Show these keys."""
        self._keys = listed.items
        self._table.show(listed.items)

    def mark(self, item: TenantKey) -> str:
        """Return the cursor after a key."""
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
        for tenant_key in self._keys_with_id(key):
            await rotate(tenant_key, self.reload)

    async def _revoke(self, key: str) -> None:
        for tenant_key in self._keys_with_id(key):
            await revoke(tenant_key, self.reload)

    def _keys_with_id(self, key: str) -> list[TenantKey]:
        return [tenant_key for tenant_key in self._keys if tenant_key.key.id.hex == key]

"""Dialogs that create, rotate and revoke API keys; a new key is shown only once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.core.errors import LowtideError
from lowtide.core.scopes import Scope
from lowtide.tenants.keys import KeyTerms
from portal.components.basics import confirm, copy, heading
from portal.formats import absolute, ago
from portal.pages.administration import name_problem, tenancy_of_principal
from portal.services import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from lowtide.tenants.keys import TenantKey


_OVERLAPS: Final = {
    "0": "immediately",
    "1h": "after 1 hour",
    "24h": "after 24 hours",
    "7d": "after 7 days",
    "30d": "after 30 days",
}


_LIVES: Final = {
    "": "never",
    "24h": "after 24 hours",
    "7d": "after 7 days",
    "30d": "after 30 days",
    "90d": "after 90 days",
    "365d": "after 365 days",
}


class NewKey:
    """A dialog that creates a named key for a tenant."""

    def __init__(
        self, tenants: Sequence[str], chosen: str, on_done: Callable[[], Awaitable[None]]
    ) -> None:
        self._on_done = on_done
        with (
            ui.dialog().props('aria-label="New key"') as self._dialog,
            ui.element("div").classes("card dialog section"),
        ):
            heading("New key")
            initial = chosen if chosen in tenants else tenants[0]
            self._tenant = ui.select(list(tenants), value=initial, label="Tenant", with_input=True)
            self._name = ui.input("Name", validation=name_problem)
            self._scopes = ui.select(
                [scope.value for scope in Scope if scope is not Scope.ADMIN],
                value=[],
                multiple=True,
                label="Scopes",
            ).props('use-chips hint="Without one, the key may do everything"')
            self._life = ui.select(_LIVES, value="", label="The key expires")
            for field in (self._tenant, self._name, self._scopes, self._life):
                field.props("dense outlined options-dense")
            self._name.props["hint"] = "Where it is used, such as laptop or nightly-eval"
            self._problem = ui.label("").classes("banner").props("role=alert")
            self._problem.set_visibility(False)
            with ui.element("div").classes("actions end"):
                ui.button("Cancel", on_click=self._dialog.close, color=None).props("flat no-caps")
                ui.button("Create key", on_click=self._create).props("unelevated no-caps")
        self._dialog.on("hide", self._dialog.delete)
        self._dialog.open()

    async def _create(self) -> None:
        if not self._name.validate():
            return
        tenant, name = str(self._tenant.value or ""), (self._name.value or "").strip()
        try:
            tenancy = tenancy_of_principal()
            terms = KeyTerms.parse(self._scopes.value, self._life.value or None)
            key = await in_thread(lambda: tenancy.create_key(tenant, name, terms))
        except LowtideError as error:
            self._problem.text = error.message
            self._problem.set_visibility(True)
            return
        self._dialog.close()
        show_once(key, f"{name} of {tenant}", *_notes(terms))
        await self._on_done()


async def rotate(tenant_key: TenantKey, on_done: Callable[[], Awaitable[None]]) -> None:
    """Ask how long the old key stays valid, create its successor and show it."""
    overlaps: list[ui.select] = []
    name, tenant = tenant_key.key.name, tenant_key.tenant
    try:
        tenancy_of_principal()
        if not await confirm(
            f"Rotate key {name} of {tenant}?",
            [
                "The new key has the same name and works at once. The old key works until it expires."
            ],
            action=f"Rotate {name}",
            fill=lambda: overlaps.append(_overlap_choice()),
        ):
            return
        tenancy, overlap = tenancy_of_principal(), str(overlaps[0].value)
        rotation = await in_thread(lambda: tenancy.rotate_key(tenant, name, overlap))
    except LowtideError as error:
        ui.notify(error.message, type="negative", multi_line=True)
        return
    note = (
        "The old key has expired."
        if overlap == "0"
        else f"The old key works until {absolute(rotation.old_until)}."
    )
    show_once(rotation.key, f"{name} of {tenant}", note)
    await on_done()


async def revoke(tenant_key: TenantKey, on_done: Callable[[], Awaitable[None]]) -> None:
    """Revoke a key after confirmation."""
    key, tenant = tenant_key.key, tenant_key.tenant
    usage = "It has never been used."
    if key.last_used_at is not None:
        usage = f"It was last used {ago(key.last_used_at, tenant_key.at)}."
    try:
        tenancy_of_principal()
        if not await confirm(
            f"Revoke key {key.name} of {tenant}?",
            [
                f"Its prefix is {key.prefix}." if key.prefix else f"Its id is {key.id.hex[:8]}.",
                usage,
                "Further requests with it are refused, and its portal sessions end.",
            ],
            action=f"Revoke {key.name}",
            dangerous=True,
        ):
            return
        tenancy = tenancy_of_principal()
        await in_thread(lambda: tenancy.revoke_key(tenant, key.name, key.id))
    except LowtideError as error:
        ui.notify(error.message, type="negative", multi_line=True)
        return
    ui.notify(f"Revoked {key.name} of {tenant}", type="positive")
    await on_done()


def show_once(key: str, owner: str, *notes: str) -> None:
    """Show a key in a dialog; it is stored nowhere and gone once the dialog closes."""
    with (
        # Not inside the dialog that created the key, which is deleted by now.
        ui.context.client.content,
        ui.dialog().props('persistent aria-label="New key"') as dialog,
        ui.element("div").classes("card dialog section"),
    ):
        heading("Copy this key now")
        ui.label(f"{owner}. It is shown only once and cannot be retrieved later.").classes("break")
        with ui.element("div").classes("command"):
            with ui.element("code").classes("mono"):
                ui.label(key).mark("new key")
            ui.button(icon="content_copy", on_click=lambda: copy(key), color=None).props(
                'flat dense aria-label="Copy key"'
            )
        for note in notes:
            ui.label(note)
        ui.label("Store it as a secret.").classes("muted small")
        with ui.element("div").classes("actions end"):
            ui.button("I have copied the key", on_click=dialog.close).props("unelevated no-caps")
    dialog.on("hide", dialog.delete)
    dialog.open()


def _notes(terms: KeyTerms) -> Iterator[str]:
    """Yield what a new key may do."""
    if terms.scopes is None:
        yield "It gives full access to the tenant."
    else:
        yield f"Its scopes are {', '.join(terms.scopes)}."


def _overlap_choice() -> ui.select:
    return ui.select(_OVERLAPS, value="24h", label="The old key expires").props(
        "dense outlined options-dense"
    )

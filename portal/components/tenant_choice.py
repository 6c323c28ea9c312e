"""Choosing one tenant, or all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


def tenant_choice(
    tenants: Sequence[str], chosen: str, on_change: Callable[[str], Awaitable[None]]
) -> None:
    """Show the tenants by name, to be found by typing; all of them is the empty name."""
    names = {"": "All tenants", **{name: name for name in tenants}}
    ui.select(
        names,
        value=chosen if chosen in names else "",
        label="Tenant",
        with_input=True,
        on_change=lambda event: on_change(event.value or ""),
    ).props("dense outlined options-dense")

"""The pages about tenants: who they are, their keys, and what was done."""

from __future__ import annotations

from typing import Final

from nicegui import ui

_TABS: Final = (("/tenants", "Tenants"), ("/keys", "Keys"), ("/audit", "Audit log"))


def administration_tabs(current: str) -> None:
    """Link from one to the others."""
    with ui.element("nav").classes("tabs apart").props('aria-label="Tenants, keys and audit log"'):
        for path, name in _TABS:
            link = ui.element("a").classes("tab").props(f'href="{path}"')
            if path == current:
                link.props("aria-current=page")
            with link:
                ui.label(name)

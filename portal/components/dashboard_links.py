"""Links to dashboards, out of sight where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portal.dashboards import Link


def dashboard_links(links: Sequence[Link]) -> None:
    """Show links; their addresses are never parsed as properties."""
    if not links:
        return
    with ui.element("nav").classes("dashboards").props('aria-label="Dashboards"'):
        for link in links:
            with outside_link(link.url):
                ui.label(link.name)


def outside_link(url: str) -> ui.element:
    """Open a link that leaves the portal."""
    element = ui.element("a").classes("outside").props("target=_blank rel=noreferrer")
    element.props["href"] = url
    return element

"""Where else to look: dashboards of the installation, each hidden until a setting names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nicegui import ui

from lowtide.settings import read_settings
from portal.sessions import WHOLE_INSTALLATION


@dataclass(frozen=True, slots=True)
class Place:
    """A page of the portal; `icon` is shown beside its name, `key` follows `g`."""

    name: str
    path: str
    icon: str
    key: str


PLACES: Final = (
    Place("Overview", "/", "space_dashboard", "o"),
    Place("Batches", "/batches", "layers", "b"),
    Place("Upload", "/upload", "upload_file", "u"),
    Place("Dead letters", "/dead-letters", "mark_email_unread", "d"),
    Place("Queues", "/queues", "stacked_line_chart", "q"),
    Place("Tenants", "/tenants", "groups", "t"),
    Place("Health", "/health", "monitor_heart", "h"),
)


def navigation(current: str, *, tenant: bool) -> None:
    """Link to every page, or to those for visitors of one tenant; `current` is the path of this one."""
    with ui.element("nav").classes("places").props('aria-label="Pages"'):
        for place in PLACES:
            if tenant and place.path in WHOLE_INSTALLATION:
                continue
            link = ui.element("a").classes("place").props(f'href="{place.path}"')
            if _is_at(place.path, current):
                link.props('aria-current="page"')
            with link:
                ui.icon(place.icon).props("aria-hidden=true")
                ui.label(place.name)


def monitoring() -> None:
    """Link to the dashboards that the settings name."""
    settings = read_settings()
    for name, url in (
        ("Grafana", settings.grafana_url),
        ("Prometheus", settings.prometheus_url),
        ("Alertmanager", settings.alertmanager_url),
    ):
        if url:
            link = ui.element("a").classes("outside")
            link.props["href"] = url
            link.props("target=_blank rel=noreferrer")
            with link:
                ui.label(name)


def _is_at(path: str, current: str) -> bool:
    if path == "/tenants" and current in ("/keys", "/audit"):
        return True
    return current == path or (path != "/" and current.startswith(f"{path}/"))

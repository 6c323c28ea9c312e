"""The frame of every page: navigation, tools and error reports."""

from __future__ import annotations

import logging
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from nicegui import app, ui

from lowtide.core.errors import LowtideError
from portal import theme
from portal.cells import PATH as CELLS
from portal.components.outage import OutageBanner
from portal.components.shortcuts import help_dialog
from portal.loading import BUILD_SECONDS, limited
from portal.services import known_cells, lowtide
from portal.sessions import SIGN_OUT, WHOLE_INSTALLATION, current_principal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Place:
    """A page in the navigation; `g` and then `key` opens it."""

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
_CELLS: Final = Place("Cells", CELLS, "lan", "c")
"""The page of the cells, on an installation that knows them."""
_OF_TENANT: Final = Place("Usage", "/usage", "data_usage", "s")
"""A page of one tenant; operators reach it by a tab of the tenants page."""


SEARCH: Final = "/search"


def page(path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Serve a page; `load` sends its frame before its data."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        # NiceGUI's own limit would answer with an error page of the framework.
        return ui.page(path, response_timeout=BUILD_SECONDS + 5)(limited(build))

    return register


def navigation(current: str, *, tenant: bool) -> None:
    """Link to every page, or to a tenant's pages; `current` is the path of the open page."""
    places = (*PLACES, _OF_TENANT if tenant else _CELLS)
    with ui.element("nav").classes("places").props('aria-label="Main"'):
        for place in places:
            if tenant and place.path in WHOLE_INSTALLATION:
                continue
            if place is _CELLS and known_cells().watch is None:
                continue
            link = ui.element("a").classes("place").props(f'href="{place.path}"')
            if _is_current(place.path, current):
                link.props('aria-current="page"')
            with link:
                ui.icon(place.icon).props("aria-hidden=true")
                ui.label(place.name)


def monitoring() -> None:
    """Link to the dashboards that the settings configure."""
    settings = lowtide().settings
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


def _is_current(path: str, current: str) -> bool:
    if path == "/tenants" and current in ("/keys", "/audit", "/usage"):
        return True
    return current == path or (path != "/" and current.startswith(f"{path}/"))


REFRESH_INTERVALS: Final[Mapping[int, str]] = {
    0: "Paused", 1: "1 s", 2: "2 s", 5: "5 s", 10: "10 s", 30: "30 s",
}  # fmt: skip
DEFAULT_INTERVAL: Final = 2
_ZONE: Final = "Time zone: {{ Intl.DateTimeFormat().resolvedOptions().timeZone }}"

# None follows the browser's own preference.
_NEXT_MODE: Final[Mapping[bool | None, bool | None]] = {None: False, False: True, True: None}
_MODES: Final[Mapping[bool | None, tuple[str, str]]] = {
    None: ("brightness_auto", "system"),
    False: ("light_mode", "light"),
    True: ("dark_mode", "dark"),
}


def chosen_interval() -> int:
    """Return the refresh interval that the user chose, in seconds; 0 is a pause."""
    chosen = app.storage.user.get("refresh", DEFAULT_INTERVAL)
    return chosen if chosen in REFRESH_INTERVALS else DEFAULT_INTERVAL


@contextmanager
def frame(
    title: str,
    *,
    api_url: str,
    on_interval: Callable[[int], None] | None,
    on_refresh: Callable[[], object] | None = None,
    data_at: Callable[[], datetime | None] = lambda: None,
) -> Iterator[None]:
    """Open a page with its top bar, title and footer, which need no data.

    `on_interval` is called with a newly chosen interval; a page without live updates has none.
    `on_refresh` is called when the user asks for an update; without it the page reloads. `data_at`
    returns the time of the data shown, None without any.
    """
    principal = current_principal()
    watch_page()
    theme.paint()
    show_title(title)
    cells = known_cells()
    crowded = " crowded" if cells.names.own_name or cells.watch is not None else ""
    with ui.header(elevated=False).classes(f"topbar{crowded}"):
        _brand()
        navigation(ui.context.client.page.path, tenant=principal.tenant is not None)
        _search_box()
        with ui.element("div").classes("tools"):
            if on_interval is not None:
                _refresh_choice(on_interval)
            refresh = on_refresh or ui.navigate.reload
            _tool("refresh", "Refresh now", "refresh").on_click(refresh)
            _tool("help_outline", "Keyboard shortcuts", "help").on_click(help_dialog().open)
            _mode_choice()
    with ui.element("div").classes("page"):
        OutageBanner(data_at)
        content = ui.element("div").classes("content")
        with ui.element("footer").classes("footer"):
            ui.label(f"Lowtide {version('lowtide')}")
            ui.label(f"API {api_url}")
            ui.element("span").mark("zone").add_slot("default", _ZONE)
            # The dashboards show every tenant's work.
            if principal.tenant is None:
                monitoring()
            _sign_out_button(principal.name)
    with content:
        yield


def _sign_out_button(name: str) -> None:
    # A form, not a link: sign-out changes state, and another site's page must not trigger it.
    with (
        ui.element("form").classes("way-out").props(f'method="post" action="{SIGN_OUT}"'),
        ui.element("button").props('type="submit"'),
    ):
        ui.label(f"Sign out {name}")


def _tool(icon: str, name: str, key: str) -> ui.button:
    button = ui.button(icon=icon, color=None).props(f"flat round dense data-key={key}")
    button.props["aria-label"] = button.props["title"] = name
    return button


def show_title(title: str) -> None:
    """Set the title of the browser's tab."""
    ui.page_title(" · ".join(filter(None, (title, known_cells().names.own_name, "Lowtide"))))


def _brand() -> None:
    cell = known_cells().names.own_name
    with ui.element("a").classes("brand").props("href=/") as link:
        ui.html(theme.FAVICON, sanitize=False).style("width: 28px; height: 28px")
        ui.label("Lowtide").classes("brand-name")
        if cell:
            cell_name(cell)
    link.props["aria-label"] = ", ".join(filter(None, ("Lowtide", cell, "overview")))


def cell_name(name: str) -> None:
    """Show the name of this portal's cell."""
    label = ui.label(name).classes("badge badge-info cell-name ellipsis")
    label.props["title"] = f"This portal shows the cell {name}"


def _search_box() -> None:
    # A form works without the websocket, and before the page is connected.
    request = ui.context.client.request
    box = ui.element("input").props("type=search name=q data-search maxlength=512 required")
    box.props["aria-label"] = box.props["placeholder"] = "Search"
    box.props["title"] = "Id, custom_id, user or metadata value (/)"
    if request is not None and ui.context.client.page.path == SEARCH:
        box.props["value"] = request.query_params.get("q", "")
    form = ui.element("form").classes("search").props(f'role=search action="{SEARCH}"')
    box.move(form)


def _refresh_choice(on_interval: Callable[[int], None]) -> None:
    def choose(interval: int) -> None:
        app.storage.user["refresh"] = interval
        on_interval(interval)

    ui.select(
        dict(REFRESH_INTERVALS),
        value=chosen_interval(),
        label="Auto-refresh",
        on_change=lambda event: choose(event.value),
    ).props("dense outlined options-dense")


def _mode_choice() -> None:
    mode = ui.dark_mode(value=app.storage.user.get("dark"))

    def advance() -> None:
        mode.value = app.storage.user["dark"] = _NEXT_MODE[mode.value]
        show()

    def show() -> None:
        icon, name = _MODES[mode.value]
        button.icon = icon
        button.props["aria-label"] = f"Theme: {name}. Switch theme"
        button.props["title"] = f"Theme: {name}"

    button = _tool("brightness_auto", "Theme", "theme").on_click(advance)
    show()


_QUIET_SECONDS: Final = 30.0
_REFERENCE: Final = "Reference "

_log = logging.getLogger(__name__)


def watch_page() -> None:
    """Notify the user when a handler of the page being built fails.

    At most every 30 s, as a failure may repeat with every refresh.
    """
    notified_at = -_QUIET_SECONDS

    def notify(error: Exception) -> None:
        nonlocal notified_at
        message = explain(error)
        if monotonic() - notified_at >= _QUIET_SECONDS:
            notified_at = monotonic()
            ui.notify(message, type="negative", position="bottom", timeout=0, close_button="Close")

    ui.on_exception(notify)


def explain(error: Exception) -> str:
    """Return an error text for the user; an unexpected error gets a reference to its log entry."""
    if isinstance(error, LowtideError):
        return error.message
    what = (
        "The page took too long to load."
        if isinstance(error, TimeoutError)
        else "Something went wrong in the portal."
    )
    return f"{what} The portal log has the details under reference {_reference(error)}."


def _reference(error: Exception) -> str:
    """Return the reference of an error, the same one on every call."""
    for note in getattr(error, "__notes__", ()):
        if note.startswith(_REFERENCE):
            return str(note.removeprefix(_REFERENCE))
    reference = secrets.token_hex(5)
    # The note appears wherever the traceback is logged.
    error.add_note(f"{_REFERENCE}{reference}")
    _log.error("portal.failed", extra={"reference": reference}, exc_info=error)
    return reference

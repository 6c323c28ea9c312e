"""What stands around every page."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from nicegui import app, ui

from portal import theme
from portal.components import links
from portal.failures import watch_page
from portal.sessions import SIGN_OUT, current_visitor
from portal.shortcuts import help_dialog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

REFRESH_INTERVALS: Final[Mapping[int, str]] = {
    0: "Paused", 1: "1 s", 2: "2 s", 5: "5 s", 10: "10 s", 30: "30 s",
}  # fmt: skip
DEFAULT_INTERVAL: Final = 2
_ZONE: Final = "Times in {{ Intl.DateTimeFormat().resolvedOptions().timeZone }}"

# None follows the browser's own preference.
_NEXT_MODE: Final[Mapping[bool | None, bool | None]] = {None: False, False: True, True: None}
_MODES: Final[Mapping[bool | None, tuple[str, str]]] = {
    None: ("brightness_auto", "as the browser"),
    False: ("light_mode", "light"),
    True: ("dark_mode", "dark"),
}


def chosen_interval() -> int:
    """Return the seconds between refreshes that this visitor chose; 0 is a pause."""
    chosen = app.storage.user.get("refresh", DEFAULT_INTERVAL)
    return chosen if chosen in REFRESH_INTERVALS else DEFAULT_INTERVAL


@contextmanager
def frame(
    title: str,
    *,
    api_url: str,
    on_interval: Callable[[int], None] | None,
    on_refresh: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Open a page with its bar, its heading and its footer.

    `on_interval` is told of another pace; a page that never changes by itself has none. `on_refresh` when the visitor wants to see news at once;
    without it the page is loaded again.
    """
    visitor = current_visitor()
    watch_page()
    theme.paint()
    ui.page_title(f"{title} · Lowtide")
    with ui.header(elevated=False).classes("topbar"):
        _brand()
        links.navigation(ui.context.client.page.path, tenant=visitor.tenant is not None)
        with ui.element("div").classes("tools"):
            if on_interval is not None:
                _refresh_choice(on_interval)
            refresh = on_refresh or ui.navigate.reload
            _tool("refresh", "Update now", "refresh").on_click(refresh)
            _tool("help_outline", "Keyboard", "help").on_click(help_dialog().open)
            _mode_choice()
    with ui.element("div").classes("page"):
        yield
        with ui.element("footer").classes("footer"):
            ui.label(f"Lowtide {version('lowtide')}")
            ui.label(f"API {api_url}")
            ui.element("span").mark("zone").add_slot("default", _ZONE)
            # They show every tenant's work.
            if visitor.tenant is None:
                links.monitoring()
            _way_out(visitor.name)


def _way_out(name: str) -> None:
    # A form, not a link: leaving changes something, and another site's page must not do it.
    with (
        ui.element("form").classes("way-out").props(f'method="post" action="{SIGN_OUT}"'),
        ui.element("button").props('type="submit"'),
    ):
        ui.label(f"Sign out {name}")


def _tool(icon: str, name: str, key: str) -> ui.button:
    button = ui.button(icon=icon, color=None).props(f"flat round dense data-key={key}")
    button.props["aria-label"] = button.props["title"] = name
    return button


def _brand() -> None:
    with ui.element("a").classes("brand").props('href="/" aria-label="Lowtide, overview"'):
        ui.html(theme.FAVICON, sanitize=False).style("width: 28px; height: 28px")
        ui.label("Lowtide").classes("brand-name")


def _refresh_choice(on_interval: Callable[[int], None]) -> None:
    def choose(interval: int) -> None:
        app.storage.user["refresh"] = interval
        on_interval(interval)

    ui.select(
        dict(REFRESH_INTERVALS),
        value=chosen_interval(),
        label="Refresh",
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
        button.props["aria-label"] = f"Colours: {name}. Change"
        button.props["title"] = f"Colours: {name}"

    button = _tool("brightness_auto", "Colours", "theme").on_click(advance)
    show()

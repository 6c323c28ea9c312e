"""Going through pages that are found by where the last one ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Pager:
    """First, back and next; nothing where everything is on one page."""

    def __init__(
        self,
        *,
        on_first: Callable[[], Awaitable[None]],
        on_back: Callable[[], Awaitable[None]],
        on_next: Callable[[], Awaitable[None]],
    ) -> None:
        with ui.element("div").classes("pager") as self._all:
            self._first = ui.button("First page", on_click=on_first, color=None)
            self._back = ui.button("Back", on_click=on_back, color=None)
            self._next = ui.button("Next page", on_click=on_next, color=None)
        for button in (self._first, self._back, self._next):
            button.props("flat no-caps")

    def show(self, *, first: bool, more: bool) -> None:
        """Show where one can go from here."""
        self._all.set_visibility(more or not first)
        self._first.set_enabled(not first)
        self._back.set_enabled(not first)
        self._next.set_enabled(more)

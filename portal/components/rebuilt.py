"""A part of a page that is built anew when what it shows has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from nicegui import ui

if TYPE_CHECKING:
    from collections.abc import Callable

_Value = TypeVar("_Value")


class Rebuilt(Generic[_Value]):
    """Builds its content from one value; nothing is sent while the value stays the same."""

    def __init__(self, build: Callable[[_Value], None], classes: str = "") -> None:
        self._build = build
        self._shown: _Value | None = None
        self._place = ui.element("div").classes(classes)

    def show(self, value: _Value) -> None:
        """Show a value."""
        if value != self._shown:
            self._shown = value
            self._place.clear()
            with self._place:
                self._build(value)

"""A figure with its name."""

from __future__ import annotations

from nicegui import ui


class StatCard:
    """One figure, what it counts, and a note under it."""

    def __init__(self, title: str) -> None:
        with ui.element("div").classes("card stat"):
            ui.label(title).classes("muted")
            self._value = ui.label("—").classes("value").mark(title)
            self._note = ui.label("").classes("muted small")

    def show(self, value: str, note: str = "", *, alarming: bool = False) -> None:
        """Show a figure; an alarming one in the colour of trouble."""
        self._value.text = value
        self._note.text = note
        self._value.classes(add="bad") if alarming else self._value.classes(remove="bad")

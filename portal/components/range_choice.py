"""How far back charts go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.domain.history import HistoryRange

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMES: Final = {
    HistoryRange.HOUR: "1 h",
    HistoryRange.SIX_HOURS: "6 h",
    HistoryRange.DAY: "24 h",
    HistoryRange.WEEK: "7 d",
}


def range_choice(chosen: HistoryRange, on_change: Callable[[HistoryRange], object]) -> None:
    """Show the ranges side by side."""
    with ui.element("div").props('role=group aria-label="Time shown"'):
        ui.toggle(
            {each.value: name for each, name in _NAMES.items()},
            value=chosen.value,
            on_change=lambda event: on_change(HistoryRange(event.value)),
        ).props("no-caps unelevated dense toggle-color=primary padding='3px 12px'").classes(
            "ranges"
        )

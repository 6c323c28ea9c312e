"""The banner of an outage of the database, on every page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nicegui import ui

from portal.formats import duration
from portal.pulse import PULSE

if TYPE_CHECKING:
    from collections.abc import Callable


class OutageBanner:
    """The age of the data, counted up during an outage; hidden while the database answers.

    `data_at` returns the time of the page's data, None without any.
    """

    def __init__(self, data_at: Callable[[], datetime | None]) -> None:
        self._data_at = data_at
        self._banner = ui.element("div").classes("banner outage").props("role=alert")
        with self._banner:
            self._before = ui.label("")
            # A screen reader announces the outage once, not every second.
            self._age = ui.label("").props("role=timer")
            self._after = ui.label("")
        self._show()
        PULSE.changed.subscribe(self._show)

    def _show(self) -> None:
        self._banner.set_visibility(not PULSE.answering)
        if PULSE.answering:
            return
        at = self._data_at()
        age = timedelta(seconds=PULSE.silence) if at is None else datetime.now(UTC) - at
        before, after = (
            ("No data for ", ": the database is not answering.")
            if at is None
            else ("Data is ", " old: the database is not answering.")
        )
        self._before.text, self._age.text, self._after.text = before, duration(age), after

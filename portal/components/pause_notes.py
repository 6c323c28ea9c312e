"""What an operator has stopped, said on every page of the whole installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from portal.zones import visitor_zone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, tzinfo

    from lowtide.domain.pools import PoolPause


class PauseNotes:
    """A line for each paused pool; out of sight while there is none."""

    def __init__(self) -> None:
        self._shown: list[str] | None = None
        self._zone = visitor_zone()
        self._place = ui.element("div").classes("notice").props("role=status")
        self._place.set_visibility(False)

    def show(self, pauses: Sequence[PoolPause], now: datetime) -> None:
        """Show these; nothing is sent while they stay the same."""
        notes = [note_of(pause, now, self._zone) for pause in pauses]
        if notes == self._shown:
            return
        self._shown = notes
        self._place.set_visibility(bool(notes))
        self._place.clear()
        with self._place:
            for note in notes:
                ui.label(note)


def note_of(pause: PoolPause, now: datetime, zone: tzinfo) -> str:
    """Return a pause in words; the date is named once it is another."""
    since = pause.since.astimezone(zone)
    same_day = since.date() == now.astimezone(zone).date()
    moment = f"{since:%H:%M %Z}" if same_day else f"{since:%Y-%m-%d %H:%M %Z}"
    return f"{pause.pool.capitalize()} is paused since {moment} by {pause.by}"

"""Keeping an open page current."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Generic, TypeVar

from nicegui import ui

from portal.components.basics import heading
from portal.components.frame import chosen_interval, frame
from portal.formats import absolute, duration
from portal.services import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from portal.polling import Poller


class Live:
    """One open page that follows the poller at its visitor's pace, or stands still.

    The page reads what the poller has seen, so that it costs no query of its own.
    """

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._interval = chosen_interval()
        self._follower = ui.context.client.id
        # Also where the page turns out to have nothing to follow: its visitor may choose a pace.
        ui.context.client.on_delete(lambda: poller.unfollow(self._follower))
        self._shown_at = datetime.min.replace(tzinfo=UTC)
        self._show: Callable[[], None] = _nothing
        self._reread: Callable[[], None] | None = None
        self._updated: ui.label

    @contextmanager
    def page(self, title: str, *, api_url: str) -> Iterator[None]:
        """Open the frame with the page's heading, and how old what it shows is."""
        with frame(title, api_url=api_url, on_interval=self._follow, on_refresh=self.refresh):
            with ui.element("div").classes("titlebar"):
                heading(title, 1)
                self._updated = ui.label("").classes("muted small").mark("updated")
            yield

    @property
    def paused(self) -> bool:
        """Whether the visitor wants the page to stand still."""
        return self._interval == 0

    def keep(self, show: Callable[[], None], reread: Callable[[], None] | None = None) -> None:
        """Call `show` now, and again whenever there is news that the visitor wants to see.

        `reread` reads what the poller reads for this page alone, and not while the page is paused.
        """
        self._show = show
        self._reread = reread
        self._follow(self._interval)
        self._poller.changed.subscribe(self._on_change)
        self._draw()

    async def refresh(self) -> None:
        """Show what there is now, also while the page is paused."""
        await self._poller.fresh(timeout=2.0)
        if self.paused and self._reread is not None:
            await in_thread(self._reread)
        self._draw()

    def _follow(self, interval: int) -> None:
        self._interval = interval
        self._poller.follow(self._follower, interval)

    def _on_change(self) -> None:
        # Half a second of tolerance: readings come a little before or after they are due.
        due = self._shown_at + timedelta(seconds=self._interval - 0.5)
        if self._interval and datetime.now(UTC) >= due:
            self._draw()
        else:
            self._show_age()

    def _draw(self) -> None:
        self._shown_at = datetime.now(UTC)
        self._show()
        self._show_age()

    def _show_age(self) -> None:
        overview = self._poller.seen.overview
        at = overview.at if overview is not None and self._interval else self._shown_at
        age = max(datetime.now(UTC) - at, timedelta())
        text = f"Updated {duration(age)} ago" if age.total_seconds() >= 1 else "Updated just now"
        self._updated.text = text if self._interval else f"Paused · {text.lower()}"
        self._updated.props["title"] = absolute(at)


def _nothing() -> None:
    """Show nothing."""


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

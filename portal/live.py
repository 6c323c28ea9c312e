"""Live updates of an open page."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from html import escape
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from nicegui import ui

from lowtide.core.errors import Unavailable
from portal.components.basics import heading
from portal.components.frame import chosen_interval, frame, show_title
from portal.formats import duration, hint
from portal.pulse import PULSE
from portal.services import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from portal.polling import Poller


_NEVER: Final = datetime.min.replace(tzinfo=UTC)


class Live:
    """An open page that follows the poller at the chosen interval, or is paused.

    It shows the poller's last readings and issues no queries of its own. `read_at` returns the time of
    the page's data, by default of the snapshot.
    """

    def __init__(
        self, poller: Poller, read_at: Callable[[], datetime | None] | None = None
    ) -> None:
        self._poller = poller
        self._read_at = read_at or self._snapshot_at
        self._interval = chosen_interval()
        self._follower = ui.context.client.id
        # Needed even if `keep` is never called: the interval control registers the follower, too.
        ui.context.client.on_delete(lambda: poller.unfollow(self._follower))
        self._drawn_at = _NEVER
        self._show: Callable[[], None] = _show_nothing
        self._reread: Callable[[], None] | None = None
        self._age_label: ui.label

    @contextmanager
    def page(self, title: str, *, api_url: str) -> Iterator[None]:
        """Open the frame with the page's heading and the age of its data."""
        with frame(
            title,
            api_url=api_url,
            on_interval=self._follow,
            on_refresh=self.refresh,
            data_at=self._data_at,
        ):
            with ui.element("div").classes("titlebar"):
                self._heading = heading(title, 1)
                self._age_label = ui.label("").classes("muted small").mark("updated")
            yield

    def rename(self, title: str) -> None:
        """Change the title of the page."""
        self._heading.set_content(escape(title))
        show_title(title)

    @property
    def paused(self) -> bool:
        """True while the page is paused."""
        return self._interval == 0

    def keep(self, show: Callable[[], None], reread: Callable[[], None] | None = None) -> None:
        """Call `show` now, and after a reading of the poller once the chosen interval has passed.

        `reread` reads this page's own subject on a refresh while the page is paused, when the
        poller skips it.
        """
        self._show = show
        self._reread = reread
        self._follow(self._interval)
        self._poller.changed.subscribe(self._on_change)
        PULSE.changed.subscribe(self._show_age)
        self._draw()

    async def refresh(self) -> None:
        """Show the current state, even while the page is paused; nothing before `keep`."""
        if self._show is _show_nothing:
            return
        await self._poller.fresh(timeout=2.0)
        if self.paused and self._reread is not None:
            with suppress(Unavailable):
                await in_thread(self._reread)
        self._draw()

    def _follow(self, interval: int) -> None:
        self._interval = interval
        self._poller.follow(self._follower, interval)

    def _on_change(self) -> None:
        # Half a second of tolerance: readings arrive slightly early or late.
        due = self._drawn_at + timedelta(seconds=self._interval - 0.5)
        if self._interval and datetime.now(UTC) >= due:
            self._draw()
        else:
            self._show_age()

    def _draw(self) -> None:
        self._drawn_at = datetime.now(UTC)
        self._show()
        self._show_age()

    def _data_at(self) -> datetime | None:
        if self._drawn_at is _NEVER:
            return None
        if self.paused:
            return self._drawn_at
        return self._read_at()

    def _snapshot_at(self) -> datetime | None:
        snapshot = self._poller.seen.snapshot
        return None if snapshot is None else snapshot.at

    def _show_age(self) -> None:
        at = self._data_at() or self._drawn_at
        age = max(datetime.now(UTC) - at, timedelta())
        text = f"Updated {duration(age)} ago" if age.total_seconds() >= 1 else "Updated just now"
        self._age_label.text = text if self._interval else f"Paused · {text.lower()}"
        self._age_label.props["title"] = hint(at)


def _show_nothing() -> None:
    """Show nothing."""


_Value = TypeVar("_Value")


class Rebuilt(Generic[_Value]):
    """An element built from one value; nothing is sent while the value stays the same."""

    def __init__(self, build: Callable[[_Value], None], classes: str = "") -> None:
        self._build = build
        self._value: _Value | None = None
        self._container = ui.element("div").classes(classes)

    def show(self, value: _Value) -> None:
        """Show a value; rebuild the content only if it changed."""
        if value != self._value:
            self._value = value
            self._container.clear()
            with self._container:
                self._build(value)

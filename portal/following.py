"""A page's look at one range of history, shared with all pages that look at the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from portal.background import in_thread
from portal.readings import Subject

if TYPE_CHECKING:
    from lowtide.domain.history import History, HistoryRange
    from portal.live import Live
    from portal.watching import Watching


class FollowedHistory:
    """Follows a range while its page is open; the poller reads it."""

    def __init__(self, watching: Watching, live: Live) -> None:
        self._watching = watching
        self._live = live
        self._follower = ui.context.client.id
        self._subject: Subject[History] | None = None
        self._wanted: HistoryRange | None = None
        ui.context.client.on_delete(lambda: watching.readings.unfollow(self._follower))

    @property
    def seen(self) -> History | None:
        """The last good reading."""
        return None if self._subject is None else self._subject.reading.value

    async def follow(self, wanted: HistoryRange) -> None:
        """Look at this range from now on."""
        self._wanted = wanted
        book = self._watching.history
        subject = Subject(("history", wanted), lambda: book.read(wanted))
        followed = self._watching.readings.follow(
            self._follower, subject, lambda: self._live.paused
        )
        await in_thread(followed.look)
        # A range that was chosen while this one was read is the one to show.
        if self._wanted is wanted:
            self._subject = followed

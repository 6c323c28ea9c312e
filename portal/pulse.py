"""The pulse of the database: whether it answers, asked every two seconds."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from nicegui import Event

from lowtide.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable


INTERVAL: Final = 2.0
RETRY: Final = 0.5
PATIENCE: Final = 5.0
"""Seconds of silence, of which the last attempt must be a failed one, that count as an outage."""


class Pulse:
    """Whether the database answers. An outage starts 5 to 7 s after its last answer.

    `changed` is emitted when an outage starts, every second while it lasts, and when it ends.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.changed: Event[[]] = Event()
        self._clock = clock
        self._answered_at = clock()
        self._recovered_at = float("-inf")
        self._answering = asyncio.Event()
        self._answering.set()
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def answering(self) -> bool:
        """False during an outage."""
        return self._answering.is_set()

    @property
    def silence(self) -> float:
        """The seconds since the last answer."""
        return self._clock() - self._answered_at

    def check(self) -> None:
        """Raise Unavailable during an outage."""
        if not self.answering:
            raise Unavailable("The database is not answering: try again.")

    async def answers(self) -> None:
        """Wait for the end of an outage, if there is one."""
        await self._answering.wait()

    def interrupted(self, since: float) -> bool:
        """Return True if there was an outage after `since`, a time of the pulse's clock."""
        return not self.answering or self._recovered_at > since

    def note(self, *, answered: bool) -> None:
        """Record the result of an attempt."""
        if answered:
            self._answered_at = self._clock()
            if not self.answering:
                self._recovered_at = self._answered_at
                self._answering.set()
                self.changed.emit()
        elif self.answering and self.silence >= PATIENCE:
            self._answering.clear()
            self.changed.emit()

    def start(self, ask: Callable[[], bool]) -> None:
        """Ask from now on; needs a running event loop. `ask` returns False without an answer."""
        # A thread of its own: it must not wait for those that hang on the database.
        self._thread = ThreadPoolExecutor(1, "pulse")
        loops = (self._beat(ask, self._thread), self._count())
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    def stop(self) -> None:
        """Stop asking, without waiting for an answer."""
        for task in self._tasks:
            task.cancel()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _beat(self, ask: Callable[[], bool], thread: ThreadPoolExecutor) -> None:
        while True:
            answered = await asyncio.get_running_loop().run_in_executor(thread, ask)
            self.note(answered=answered)
            await asyncio.sleep(INTERVAL if answered else RETRY)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if not self.answering:
                self.changed.emit()


PULSE: Final = Pulse()
"""The pulse of this process, which serves all pages."""

"""One poller for the whole process: pages follow it, none queries by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from nicegui import Event, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.services.overview import Seen, Watch

IDLE_INTERVAL = 10.0
PROBE_INTERVAL = 5.0
FRESH_FOR = 1.0
DUTY_CYCLE = 0.1
LONGEST_REST = 10.0

_log = logging.getLogger(__name__)


class Poller:
    """Looks as often as the most eager open page wants, and every 10 s when none does.

    `looks` read the database after the watch has, `probes` ask other parts beside it, each at its own
    pace: one that hangs holds up no other. However many pages follow, each runs once a turn.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        looks: Sequence[Callable[[], None]] = (),
        probes: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.changed: Event[[]] = Event()
        self._watch = watch
        self._looks = (watch.look, *looks)
        self._probes = tuple(probes)
        self._followers: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()
        self._looked_at = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def seen(self) -> Seen:
        """The last that was seen."""
        return self._watch.seen

    def follow(self, follower: str, interval: float) -> None:
        """Look at least every `interval` seconds for this follower; 0 is a pause."""
        self._followers[follower] = interval
        self._wake.set()

    def unfollow(self, follower: str) -> None:
        """Forget a follower."""
        self._followers.pop(follower, None)

    async def fresh(self, timeout: float) -> None:  # noqa: ASYNC109
        """Wait until there is a reading of the last second, at most `timeout` seconds."""
        if time.monotonic() - self._looked_at < FRESH_FOR:
            return
        self._looked.clear()
        self._wake.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._looked.wait(), timeout)

    def start(self) -> None:
        """Start looking; needs a running event loop."""
        probes = [self._probe(probe) for probe in self._probes]
        self._tasks = [asyncio.create_task(loop) for loop in (self._look(), *probes)]

    def stop(self) -> None:
        """Stop looking; a query under way is not waited for."""
        for task in self._tasks:
            task.cancel()

    async def _look(self) -> None:
        while True:
            self._wake.clear()
            start = time.monotonic()
            for look in self._looks:
                await _in_background(look)
            self._looked_at = time.monotonic()
            self._looked.set()
            self.changed.emit()
            await self._rest(rest_after(self._looked_at - start))

    async def _rest(self, least: float) -> None:
        """Wait for the interval of the most eager follower, cut short when a new one comes."""
        await asyncio.sleep(least)
        intervals = [interval for interval in self._followers.values() if interval > 0]
        remaining = min(intervals, default=IDLE_INTERVAL) - least
        if remaining > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), remaining)

    async def _probe(self, probe: Callable[[], None]) -> None:
        while True:
            await _in_background(probe)
            self.changed.emit()
            await asyncio.sleep(PROBE_INTERVAL)


def rest_after(reading: float) -> float:
    """Return the least seconds between a reading of this many seconds and the next.

    What takes long is repeated that much less often, as the portal must not be the load. But on a
    machine that is short of everything, an operator wants to see why.
    """
    return min(reading / DUTY_CYCLE, LONGEST_REST)


async def _in_background(step: Callable[[], None]) -> None:
    try:
        await run.io_bound(step)
    except Exception:  # noqa: BLE001 - a loop that ends would freeze every page in silence
        _log.exception("portal.poll_failed")

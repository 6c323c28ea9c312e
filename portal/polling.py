"""One poller for the whole process: pages follow it, none queries by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx
from nicegui import Event, run

from lowtide.core.errors import LowtideError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from lowtide.status.overview import Seen, Watch


_Value = TypeVar("_Value")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading(Generic[_Value]):
    """The last good value, None before the first, and what is wrong since."""

    value: _Value | None = None
    problem: LowtideError | None = None
    at: datetime | None = None


class Subject(Generic[_Value]):
    """One thing to read, for all pages that look at it. `key` names it, `read` may take a while."""

    def __init__(self, key: Hashable, read: Callable[[], _Value]) -> None:
        self.key = key
        self.reading: Reading[_Value] = Reading()
        self._read = read

    def look(self) -> None:
        """Read anew; keeps the last good value when that fails."""
        try:
            self.reading = Reading(self._read(), at=datetime.now(UTC))
        except LowtideError as error:
            self.reading = Reading(self.reading.value, error, self.reading.at)


class Readings:
    """Who looks at what. Pages that look at the same share one subject, and a paused page costs nothing."""

    def __init__(self) -> None:
        self._followers: dict[str, tuple[Subject[Any], Callable[[], bool]]] = {}

    def follow(
        self,
        follower: str,
        subject: Subject[_Value],
        paused: Callable[[], bool],
    ) -> Subject[_Value]:
        """Have the poller read a subject for this follower instead of what it looked at before.

        Returns the subject of that key that others look at, if they do.
        """
        found = subject
        for known, _ in list(self._followers.values()):
            if known.key == subject.key:
                found = known
        self._followers[follower] = (found, paused)
        return found

    def unfollow(self, follower: str) -> None:
        """Forget a follower."""
        self._followers.pop(follower, None)

    def look(self) -> None:
        """Read each subject that somebody looks at; a bug in one holds up no other."""
        followed = list(self._followers.values())
        for subject in {id(each): each for each, paused in followed if not paused()}.values():
            try:
                subject.look()
            except Exception:  # noqa: BLE001 - as in the poller: what fails is logged, the rest goes on
                _log.exception("portal.reading_failed")


def at_most_every(
    seconds: float,
    read: Callable[[], _Value],
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], _Value]:
    """Return a reading that repeats itself where the last one is younger than this."""
    last: tuple[float, _Value] | None = None

    def again() -> _Value:
        nonlocal last
        now = clock()
        if last is None or now - last[0] >= seconds:
            last = (now, read())
        return last[1]

    return again


IDLE_INTERVAL = 10.0
PROBE_INTERVAL = 5.0
FRESH_FOR = 1.0
DUTY_CYCLE = 0.1
LONGEST_REST = 10.0


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


TIMEOUT = 3.0


class ApiProbe:
    """Asks the API whether it is ready."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url.rstrip('/')}/health/ready"
        # The API is a neighbour: never through a proxy that the environment names.
        self._client = httpx.Client(timeout=TIMEOUT, trust_env=False)

    def __call__(self) -> None:
        """Raise Unavailable unless `GET /health/ready` answers 200."""
        try:
            response = self._client.get(self._url)
        except httpx.TimeoutException as error:
            raise Unavailable(f"No answer within {TIMEOUT:.0f} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable("No connection") from error
        if response.status_code != 200:
            raise Unavailable(f"Answers HTTP {response.status_code}")

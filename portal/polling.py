"""The process-wide poller: pages follow it and issue no queries of their own."""

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
from portal.pulse import PULSE
from portal.services import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from lowtide.status.watch import Seen, SystemWatch


_Value = TypeVar("_Value")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading(Generic[_Value]):
    """The last good value with its time, None before the first, and the error since then."""

    value: _Value | None = None
    problem: LowtideError | None = None
    at: datetime | None = None


class Subject(Generic[_Value]):
    """A value read once for all pages that follow it; `key` identifies it, `read` may block."""

    def __init__(self, key: Hashable, read: Callable[[], _Value]) -> None:
        self.key = key
        self.reading: Reading[_Value] = Reading()
        self._read = read

    def look(self) -> None:
        """Read the value; keep the last good one on a LowtideError."""
        try:
            self.reading = Reading(self._read(), at=datetime.now(UTC))
        except LowtideError as error:
            self.reading = Reading(self.reading.value, error, self.reading.at)

    def first(self) -> None:
        """Read the value; raise the error if there is none."""
        self.look()
        if self.reading.problem is not None and self.reading.value is None:
            raise self.reading.problem

    async def read(self) -> None:
        """Read the value in a thread; during an outage of the database, the poller reads it later."""
        with suppress(Unavailable):
            await in_thread(self.look)


class Readings:
    """The subjects that open pages follow.

    Pages that follow the same key share one subject; a paused page costs nothing.
    """

    def __init__(self) -> None:
        self._followers: dict[str, tuple[Subject[Any], Callable[[], bool]]] = {}

    def follow(
        self,
        follower: str,
        subject: Subject[_Value],
        paused: Callable[[], bool],
    ) -> Subject[_Value]:
        """Replace the follower's subject.

        Returns the subject already followed under the same key, else the given one.
        """
        shared = subject
        for existing, _ in list(self._followers.values()):
            if existing.key == subject.key:
                shared = existing
        self._followers[follower] = (shared, paused)
        return shared

    def unfollow(self, follower: str) -> None:
        """Remove a follower."""
        self._followers.pop(follower, None)

    def look(self) -> None:
        """Read the subjects of all unpaused pages; a bug in one does not stop the others.

        An outage of the database ends it: each of the others would hang as long.
        """
        followed = list(self._followers.values())
        for subject in {id(each): each for each, paused in followed if not paused()}.values():
            if not PULSE.answering:
                return
            try:
                subject.look()
            except Exception:  # noqa: BLE001 - as in the poller: what fails is logged, the rest goes on
                _log.exception("portal.reading_failed")


def at_most_every(
    seconds: float,
    read: Callable[[], _Value],
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], _Value]:
    """Return `read` with its result cached for this many seconds."""
    last: tuple[float, _Value] | None = None

    def cached() -> _Value:
        nonlocal last
        now = clock()
        if last is None or now - last[0] >= seconds:
            last = (now, read())
        return last[1]

    return cached


IDLE_INTERVAL = 10.0
PROBE_INTERVAL = 5.0
FRESH_FOR = 1.0
DUTY_CYCLE = 0.1
LONGEST_REST = 10.0


class Poller:
    """Polls at the shortest interval of all open pages, every 10 s if none is active.

    It waits for the end of an outage of the database, and then polls at once.

    `looks` read the database, in order, after the snapshot. `probes` query other components, each in a
    task of its own: a hanging one does not block the others. Each runs once per turn, however many
    pages follow.
    """

    def __init__(
        self,
        watch: SystemWatch,
        *,
        looks: Sequence[Callable[[], None]] = (),
        probes: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.changed: Event[[]] = Event()
        self._watch = watch
        self._readers = (watch.look, *looks)
        self._probes = tuple(probes)
        self._followers: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._read_done = asyncio.Event()
        self._read_at = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def seen(self) -> Seen:
        """The last snapshot."""
        return self._watch.seen

    def follow(self, follower: str, interval: float) -> None:
        """Poll at least every `interval` seconds for this follower; 0 pauses it."""
        self._followers[follower] = interval
        self._wake.set()

    def unfollow(self, follower: str) -> None:
        """Remove a follower."""
        self._followers.pop(follower, None)

    async def fresh(self, timeout: float) -> None:  # noqa: ASYNC109
        """Wait up to `timeout` seconds for a reading less than a second old."""
        if time.monotonic() - self._read_at < FRESH_FOR or not PULSE.answering:
            return
        self._read_done.clear()
        self._wake.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._read_done.wait(), timeout)

    def start(self) -> None:
        """Start polling; needs a running event loop."""
        probes = [self._probe(probe) for probe in self._probes]
        self._tasks = [asyncio.create_task(loop) for loop in (self._poll(), *probes)]

    def stop(self) -> None:
        """Stop polling, without waiting for a running query."""
        for task in self._tasks:
            task.cancel()

    async def _poll(self) -> None:
        while True:
            await PULSE.answers()
            self._wake.clear()
            start = time.monotonic()
            for reader in self._readers:
                if PULSE.answering:
                    await _in_background(reader)
            self._read_at = time.monotonic()
            self._read_done.set()
            self.changed.emit()
            # A reading that hung on a frozen database was no load on it.
            interrupted = PULSE.interrupted(start)
            await self._pause(0.0 if interrupted else rest_after(self._read_at - start))

    async def _pause(self, min_seconds: float) -> None:
        """Wait for the shortest interval of the followers; `follow` cuts it to `min_seconds` s."""
        await asyncio.sleep(min_seconds)
        intervals = [interval for interval in self._followers.values() if interval > 0]
        remaining = min(intervals, default=IDLE_INTERVAL) - min_seconds
        if remaining > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), remaining)

    async def _probe(self, probe: Callable[[], None]) -> None:
        while True:
            await _in_background(probe)
            self.changed.emit()
            await asyncio.sleep(PROBE_INTERVAL)


def rest_after(reading: float) -> float:
    """Return the min seconds between a reading that took `reading` seconds and the next.

    Slow readings repeat less often, so that the portal is not the load. The max of 10 s keeps the
    portal usable on an overloaded machine.
    """
    return min(reading / DUTY_CYCLE, LONGEST_REST)


async def _in_background(step: Callable[[], None]) -> None:
    try:
        await run.io_bound(step)
    except Exception:  # noqa: BLE001 - a loop that ends would freeze every page in silence
        _log.exception("portal.poll_failed")


TIMEOUT = 3.0


class ApiProbe:
    """A readiness probe of the API."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url.rstrip('/')}/health/ready"
        # The API is a neighbour: proxies in the environment do not apply.
        self._client = httpx.Client(timeout=TIMEOUT, trust_env=False)

    def __call__(self) -> None:
        """Raise Unavailable unless `GET /health/ready` answers 200."""
        try:
            response = self._client.get(self._url)
        except httpx.TimeoutException as error:
            raise Unavailable(f"No response within {TIMEOUT:.0f} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable("No connection") from error
        if response.status_code != 200:
            raise Unavailable(f"Responded with HTTP {response.status_code}")

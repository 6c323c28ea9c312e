"""One poller for all pages."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import pytest

from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.planning.demand import PoolScale
from lowtide.status.snapshot import SystemSnapshot
from lowtide.status.snapshot_store import SnapshotStore
from lowtide.status.watch import SystemWatch
from portal import polling
from portal.polling import Poller, Readings, Subject, rest_after
from portal.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SNAPSHOT = SystemSnapshot(datetime(2026, 1, 2, tzinfo=UTC))


class FakeSnapshots(SnapshotStore):
    """A store that counts its reads."""

    def __init__(self) -> None:
        self.reads = 0
        self.fails = False

    def check(self) -> None:
        """Answer."""

    def read(self, *, for_metrics: bool = False) -> SystemSnapshot:  # noqa: ARG002
        self.reads += 1
        if self.fails:
            raise RuntimeError("a bug")
        return SNAPSHOT


def _watch(source: FakeSnapshots) -> SystemWatch:
    scales = {DEFAULT_FLEET: {pool: PoolScale(5, 4) for pool in Pool}}
    return SystemWatch(source, scales, clock=lambda: datetime.now(UTC))


def _run(scenario: Callable[[Poller, FakeSnapshots], Awaitable[None]]) -> None:
    async def main() -> None:
        source = FakeSnapshots()
        poller = Poller(_watch(source))
        poller.start()
        try:
            await scenario(poller, source)
        finally:
            poller.stop()

    asyncio.run(main())


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_poller_reads_at_once_and_rests_without_followers() -> None:
    async def scenario(poller: Poller, source: FakeSnapshots) -> None:
        await poller.fresh(timeout=5)
        assert poller.seen.snapshot == SNAPSHOT
        await asyncio.sleep(0.2)
        assert source.reads == 1

    _run(scenario)


def test_follower_wakes_poller_and_fifty_cost_as_much_as_one() -> None:
    async def scenario(poller: Poller, source: FakeSnapshots) -> None:
        await poller.fresh(timeout=5)
        for page in range(50):
            poller.follow(f"page {page}", 0.1)
        await _until(lambda: source.reads >= 2)
        first = source.reads
        await asyncio.sleep(0.55)
        assert 2 <= source.reads - first <= 7

    _run(scenario)


@pytest.mark.parametrize(("reading", "rest"), [(0.0, 0.0), (0.1, 1.0), (0.5, 5.0), (4.0, 10.0)])
def test_slow_reading_is_repeated_less_often(reading: float, rest: float) -> None:
    assert rest_after(reading) == pytest.approx(rest)


def test_paused_and_closed_pages_do_not_cause_reads() -> None:
    async def scenario(poller: Poller, source: FakeSnapshots) -> None:
        poller.follow("paused", 0)
        poller.follow("gone", 0.05)
        poller.unfollow("gone")
        await poller.fresh(timeout=5)
        await asyncio.sleep(0.3)
        assert source.reads <= 2

    _run(scenario)


def test_hanging_probe_does_not_block_others() -> None:
    released, probed = threading.Event(), threading.Event()

    def hang() -> None:
        released.wait(20)

    async def main() -> None:
        poller = Poller(_watch(FakeSnapshots()), probes=[hang, probed.set])
        poller.start()
        try:
            await _until(probed.is_set)
            await poller.fresh(timeout=5)
        finally:
            released.set()
            poller.stop()

    asyncio.run(main())
    assert probed.is_set()


def test_failed_reading_does_not_end_poller(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(poller: Poller, source: FakeSnapshots) -> None:
        source.fails = True
        poller.follow("page", 0.05)
        await _until(lambda: source.reads >= 2)

    _run(scenario)
    assert "portal.poll_failed" in caplog.text


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> Pulse:
    """A pulse that a test notes answers for, without patience."""
    monkeypatch.setattr("portal.pulse.PATIENCE", 0.0)
    pulse = Pulse()
    monkeypatch.setattr(polling, "PULSE", pulse)
    return pulse


def test_poller_waits_for_end_of_outage(pulse: Pulse) -> None:
    async def scenario(poller: Poller, source: FakeSnapshots) -> None:
        await poller.fresh(timeout=5)
        pulse.note(answered=False)
        poller.follow("page", 0.01)
        # One reading may have begun before.
        await asyncio.sleep(0.1)
        turns: list[int] = []
        poller.changed.subscribe(lambda: turns.append(source.reads))
        before = source.reads
        await asyncio.sleep(0.3)
        assert (source.reads, turns) == (before, [])
        pulse.note(answered=True)
        await _until(lambda: source.reads > before)

    _run(scenario)


def test_reading_that_hung_in_outage_needs_no_rest(pulse: Pulse) -> None:
    hung = threading.Event()

    def hang() -> None:
        hung.wait(10)

    async def main() -> None:
        source = FakeSnapshots()
        poller = Poller(_watch(source), looks=[hang])
        poller.follow("page", 0.01)
        poller.start()
        try:
            await _until(lambda: source.reads == 1)
            pulse.note(answered=False)
            await asyncio.sleep(0.8)
            hung.set()
            pulse.note(answered=True)
            start = time.monotonic()
            await _until(lambda: source.reads >= 2)
            assert time.monotonic() - start < 4, "a reading of 0.8 s is followed by 8 s of rest"
        finally:
            hung.set()
            poller.stop()

    asyncio.run(main())


def test_outage_ends_a_turn_of_many_subjects(pulse: Pulse) -> None:
    readings, reads = Readings(), []

    def read(name: str) -> None:
        reads.append(name)
        pulse.note(answered=False)

    for name in ("first", "second"):
        subject = Subject(name, partial(read, name))
        readings.follow(name, subject, lambda: False)
    readings.look()
    assert reads == ["first"]

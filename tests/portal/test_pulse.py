"""Outages of the database, as the portal sees them."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from nicegui import run

from lowtide.core.errors import Unavailable
from lowtide.database.connections import answers, connect
from lowtide.local.ports import free_port
from portal import services
from portal.pulse import PATIENCE, Pulse
from portal.services import MAX_CALLS, in_thread

if TYPE_CHECKING:
    from tests.conftest import Database


class Clock:
    """A clock that moves on request."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_outage_lasts_from_seconds_of_silence_to_next_answer() -> None:
    clock, changes = Clock(), []
    pulse = Pulse(clock=clock)
    pulse.changed.subscribe(lambda: changes.append(pulse.answering))
    clock.now += PATIENCE - 1
    pulse.note(answered=False)
    pulse.check()
    clock.now += 1
    pulse.note(answered=False)
    with pytest.raises(Unavailable, match="not answering"):
        pulse.check()
    assert pulse.silence == PATIENCE
    assert pulse.interrupted(clock.now)
    clock.now += 30
    pulse.note(answered=True)
    pulse.check()
    assert (pulse.silence, changes) == (0, [False, True])
    assert [pulse.interrupted(clock.now - 1), pulse.interrupted(clock.now)] == [True, False]


def test_slow_answer_is_no_outage() -> None:
    clock = Clock()
    pulse = Pulse(clock=clock)
    clock.now += PATIENCE + 1
    pulse.note(answered=True)
    assert pulse.answering


def test_pulse_asks_until_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.pulse.RETRY", 0.01)
    monkeypatch.setattr("portal.pulse.PATIENCE", 0.0)
    results = iter([False, False, True])

    async def scenario() -> None:
        pulse = Pulse()
        ended = asyncio.Event()
        pulse.changed.subscribe(lambda: ended.set() if pulse.answering else None)
        pulse.start(lambda: next(results))
        try:
            async with asyncio.timeout(5):
                await ended.wait()
                await pulse.answers()
        finally:
            pulse.stop()

    asyncio.run(scenario())


def test_calls_are_refused_at_once_in_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse(clock=(clock := Clock()))
    monkeypatch.setattr(services, "PULSE", pulse)
    clock.now += PATIENCE
    pulse.note(answered=False)
    called = threading.Event()

    async def scenario() -> None:
        with pytest.raises(Unavailable):
            await in_thread(called.set)
        pulse.note(answered=True)
        await in_thread(called.set)

    asyncio.run(scenario())
    assert called.is_set()


def test_abandoned_calls_use_up_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    released, running = threading.Event(), 0
    lock = threading.Lock()

    def hang() -> None:
        nonlocal running
        with lock:
            running += 1
        released.wait(20)

    async def scenario() -> None:
        monkeypatch.setattr(services, "_calls", asyncio.Semaphore(MAX_CALLS))
        for _ in range(MAX_CALLS + 10):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(in_thread(hang), 0.01)
        assert await services.run_blocking(lambda: "a sign-in goes on") == "a sign-in goes on"
        assert running == MAX_CALLS
        released.set()
        assert await in_thread(lambda: "so do calls, then") == "so do calls, then"

    services.add_threads()
    try:
        asyncio.run(scenario())
    finally:
        released.set()
        run.reset()


def test_database_that_refuses_answers(database: Database) -> None:
    url = database.url("operator")
    for address, answer in (
        (url, True),
        (url.replace(":test@", ":wrong@"), True),
        (f"postgresql://lowtide_operator:x@127.0.0.1:{free_port()}/none", False),
    ):
        engine = connect(address, pool_size=1, timeout=20)
        try:
            assert answers(engine) is answer
        finally:
            engine.dispose()

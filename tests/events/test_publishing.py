"""Events are sent in the background, after their transaction."""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId
from lowtide.events.model import Event, EventType, batch_event
from lowtide.events.outbox import Outbox
from lowtide.events.publisher import BACKLOG, Publisher
from tests.worker.workers import Sink

if TYPE_CHECKING:
    from collections.abc import Callable


def _events(count: int) -> list[Event]:
    batches = [BatchId(uuid.UUID(int=number)) for number in range(count)]
    return [
        batch_event(uuid.uuid4(), EventType.BATCH_DRAINED, DEFAULT_TENANT, batch)
        for batch in batches
    ]


EVENTS = _events(4)


class _Outbox(Outbox):
    """An outbox in memory."""

    def __init__(self, *, fails: bool = False) -> None:
        self.events = list(EVENTS)
        self.fails = fails
        self.calls: list[int] = []

    def due(self, limit: int) -> list[Event]:
        self.calls.append(limit)
        return self.events[:limit]

    def forget(self, event: Event) -> None:
        if self.fails:
            raise Unavailable("away")
        self.events.remove(event)


class _HangingSink:
    """A sink that blocks until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.calls = 0

    def publish(self, event: Event) -> bool:  # noqa: ARG002
        self.calls += 1
        return self.released.wait(30)


def test_accepted_events_are_forgotten_and_others_kept() -> None:
    outbox = _Outbox()
    sink = Sink(accepts=lambda event: event != EVENTS[1])
    publisher = Publisher(sink, outbox)
    publisher.publish(EVENTS)
    assert publisher.drain(10)
    assert sorted(sink.sent, key=EVENTS.index) == EVENTS
    assert outbox.events == [EVENTS[1]]


def test_database_outage_does_not_stop_sending() -> None:
    outbox = _Outbox(fails=True)
    sink = Sink()
    publisher = Publisher(sink, outbox)
    publisher.publish(EVENTS)
    assert publisher.drain(10)
    assert (len(sink.sent), outbox.events) == (4, EVENTS)


def _refuse(_: Event) -> bool:
    return False


def _fail(_: Event) -> bool:
    raise RuntimeError


@pytest.mark.parametrize("failure", [_refuse, _fail], ids=["refused", "exception"])
def test_failing_event_does_not_block_others(failure: Callable[[Event], bool]) -> None:
    outbox = _Outbox()
    sink = Sink(accepts=lambda event: event != EVENTS[0] or failure(event))
    publisher = Publisher(sink, outbox)
    publisher.resend()
    assert publisher.drain(10)
    assert outbox.calls == [BACKLOG]
    assert outbox.events == [EVENTS[0]]
    publisher.resend()
    assert publisher.drain(10)
    assert sink.sent.count(EVENTS[0]) == 2


def test_events_that_wait_for_a_slow_sink_are_not_queued_again() -> None:
    sink, outbox = _HangingSink(), _Outbox()
    outbox.events = _events(20)
    publisher = Publisher(sink, outbox)
    for _ in range(3):
        publisher.resend()
    sink.released.set()
    assert publisher.drain(10)
    assert (sink.calls, outbox.events) == (20, [])


def test_hanging_sink_blocks_no_caller() -> None:
    sink, outbox = _HangingSink(), _Outbox()
    publisher = Publisher(sink, outbox)
    began = time.monotonic()
    publisher.publish(_events(BACKLOG + 100))
    publisher.resend()
    assert not publisher.drain(0.01)
    assert time.monotonic() - began < 5
    assert all(limit <= 8 for limit in outbox.calls), "limited by the free room"
    outbox.fails = True  # the sent events are not in this outbox
    sink.released.set()
    assert publisher.drain(10)
    assert BACKLOG <= sink.calls <= BACKLOG + 16, "the scheduler sends the rest"
    assert not [
        thread
        for thread in threading.enumerate()
        if thread.name == "publisher" and thread.is_alive()
    ]

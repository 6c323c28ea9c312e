"""Events are sent after their transaction, beside the work that caused them."""

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
    """Port Outbox, in memory."""

    def __init__(self, *, away: bool = False) -> None:
        self.events = list(EVENTS)
        self.away = away
        self.asked: list[int] = []

    def due(self, limit: int) -> list[Event]:
        self.asked.append(limit)
        return self.events[:limit]

    def forget(self, event: Event) -> None:
        if self.away:
            raise Unavailable("away")
        self.events.remove(event)


class _HangingSink:
    """Port EventSink: answers once it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked = 0

    def publish(self, event: Event) -> bool:  # noqa: ARG002
        self.asked += 1
        return self.released.wait(30)


def test_what_the_sink_takes_is_forgotten_and_the_rest_kept() -> None:
    outbox = _Outbox()
    sink = Sink(accepts=lambda event: event != EVENTS[1])
    publisher = Publisher(sink, outbox)
    publisher.publish(EVENTS)
    assert publisher.drain(10)
    assert sorted(sink.sent, key=EVENTS.index) == EVENTS
    assert outbox.events == [EVENTS[1]]


def test_a_database_that_is_away_does_not_undo_what_is_done() -> None:
    outbox = _Outbox(away=True)
    sink = Sink()
    publisher = Publisher(sink, outbox)
    publisher.publish(EVENTS)
    assert publisher.drain(10)
    assert (len(sink.sent), outbox.events) == (4, EVENTS)


def _refuse(_: Event) -> bool:
    return False


def _fail(_: Event) -> bool:
    raise RuntimeError


@pytest.mark.parametrize("otherwise", [_refuse, _fail], ids=["refused", "a bug"])
def test_one_event_never_holds_up_another(otherwise: Callable[[Event], bool]) -> None:
    outbox = _Outbox()
    sink = Sink(accepts=lambda event: event != EVENTS[0] or otherwise(event))
    publisher = Publisher(sink, outbox)
    publisher.resend()
    assert publisher.drain(10)
    assert outbox.asked == [BACKLOG]
    assert outbox.events == [EVENTS[0]]
    publisher.resend()
    assert publisher.drain(10)
    assert sink.sent.count(EVENTS[0]) == 2


def test_nobody_waits_for_a_sink_that_hangs() -> None:
    sink, outbox = _HangingSink(), _Outbox()
    publisher = Publisher(sink, outbox)
    began = time.monotonic()
    publisher.publish(_events(BACKLOG + 100))
    publisher.resend()
    assert not publisher.drain(0.01)
    assert time.monotonic() - began < 5
    assert all(asked <= 8 for asked in outbox.asked), "no more than there is room for"
    outbox.away = True  # what was sent is not this outbox's
    sink.released.set()
    assert publisher.drain(10)
    assert BACKLOG <= sink.asked <= BACKLOG + 16, "what is too much is left to the scheduler"
    assert not [it for it in threading.enumerate() if it.name == "publisher" and it.is_alive()]

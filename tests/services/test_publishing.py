"""Events are sent after their transaction, and kept until the sink took them."""

from __future__ import annotations

import uuid

import pytest

from lowtide.domain.errors import Unavailable
from lowtide.domain.events import Event, EventType, batch_event
from lowtide.domain.ids import DEFAULT_TENANT, BatchId
from lowtide.services.publishing import Publisher
from tests.services.workers import Sink

EVENTS = [
    batch_event(uuid.uuid4(), EventType.BATCH_DRAINED, DEFAULT_TENANT, BatchId(uuid.UUID(int=n)))
    for n in range(4)
]


class _Outbox:
    """Port Outbox, in memory."""

    def __init__(self, *, away: bool = False) -> None:
        self.events = list(EVENTS)
        self.away = away
        self.asked: list[tuple[int, float]] = []

    def waiting(self, limit: int, older_than: float) -> list[Event]:
        self.asked.append((limit, older_than))
        return self.events[:limit]

    def forget(self, event: Event) -> None:
        if self.away:
            raise Unavailable("away")
        self.events.remove(event)


def test_what_the_sink_takes_is_forgotten_and_the_rest_kept() -> None:
    outbox = _Outbox()
    sink = Sink(accepts=lambda event: event != EVENTS[1])
    assert Publisher(sink, outbox).publish(EVENTS) == 3
    assert sink.sent == EVENTS
    assert outbox.events == [EVENTS[1]]


def test_a_database_that_is_away_does_not_undo_what_is_done() -> None:
    outbox = _Outbox(away=True)
    sink = Sink()
    assert Publisher(sink, outbox).publish(EVENTS) == 4
    assert (sink.sent, outbox.events) == (EVENTS, EVENTS)


@pytest.mark.parametrize(("limit", "sent"), [(100, 4), (2, 2)])
def test_resending_empties_the_outbox(limit: int, sent: int) -> None:
    outbox = _Outbox()
    assert Publisher(Sink(), outbox).resend(older_than=5, limit=limit) == sent
    assert outbox.events == EVENTS[sent:]
    assert outbox.asked == [(limit, 5)]


def test_resending_ends_at_the_first_refusal() -> None:
    outbox = _Outbox()
    sink = Sink(accepts=lambda event: event == EVENTS[0])
    assert Publisher(sink, outbox).resend() == 1
    assert sink.sent == EVENTS[:2]
    assert outbox.events == EVENTS[1:]

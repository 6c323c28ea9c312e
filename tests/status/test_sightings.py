"""What a process saw, written seldom and beside the work."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId, now, uuid7
from lowtide.core.pools import Pool
from lowtide.events.model import EventType, batch_event
from lowtide.status.last_seen import (
    Component,
    LastSeenStore,
    Observation,
    Observations,
    ObservedEngine,
    ObservedSink,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.events.model import Event


class Book(LastSeenStore):
    """Keeps what is written, or refuses it."""

    def __init__(self) -> None:
        self.writes: list[Sequence[Observation]] = []
        self.refusing = False
        self.asked = 0
        self.refusals = 0
        self.open = threading.Event()
        self.open.set()

    def write(self, observed: Sequence[Observation]) -> None:
        self.asked += 1
        assert self.open.wait(10)
        if self.refusing:
            self.refusals += 1
            raise Unavailable("No answer.")
        self.writes.append(observed)

    def of(self, name: str) -> list[Observation]:
        return [
            observation
            for write in self.writes
            for observation in write
            if observation.name == name
        ]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_is_seen_a_thousand_times_is_written_once() -> None:
    book = Book()
    observations = Observations(book, timer=time.monotonic, every=60)
    book.open.clear()
    for _ in range(1000):
        observations.note(Component.FUNCTION, "read")
    observations.note(Component.FUNCTION, "read", "HTTP 500")
    book.open.set()
    observations.close(10)
    assert len(book.writes) <= 2
    last = book.of("read")[-1]
    assert (last.component, last.problem) == (Component.FUNCTION, "HTTP 500")
    assert last.failed is not None
    assert 0 <= last.failed < 10


def test_noting_never_waits_for_the_book() -> None:
    book = Book()
    book.open.clear()
    observations = Observations(book, timer=time.monotonic)
    observations.note(Component.FUNCTION, "split")
    _until(lambda: any(thread.name == "sightings" for thread in threading.enumerate()))
    observations.note(Component.FUNCTION, "finalize")
    assert book.writes == []
    book.open.set()
    observations.close(10)
    assert {observation.name for write in book.writes for observation in write} == {
        "split",
        "finalize",
    }


def test_what_the_book_refuses_is_written_later_with_its_true_age() -> None:
    book, clock = Book(), [100.0]
    book.refusing = True
    observations = Observations(book, timer=lambda: clock[0], every=0.01)
    observations.note(Component.FUNCTION, "read")
    _until(lambda: book.refusals > 1)
    clock[0] = 130.0
    book.refusing = False
    _until(lambda: bool(book.writes))
    observations.close(10)
    assert [observation.succeeded for observation in book.of("read")] == [30.0]


@pytest.mark.parametrize(
    ("refused", "later", "expected"),
    [
        pytest.param([None], ["HTTP 500"], (20.0, 10.0, "HTTP 500"), id="success, failure"),
        pytest.param(["HTTP 500"], [None], (10.0, 20.0, "HTTP 500"), id="failure, success"),
        pytest.param(["HTTP 500"], ["HTTP 503"], (None, 10.0, "HTTP 503"), id="two failures"),
        pytest.param([None, "HTTP 500"], [None], (10.0, 20.0, "HTTP 500"), id="both, success"),
    ],
)
def test_what_is_seen_after_a_refusal_adds_to_what_was_refused(
    refused: list[str | None],
    later: list[str | None],
    expected: tuple[float | None, float | None, str],
) -> None:
    book, clock = Book(), [100.0]
    book.refusing = True
    book.open.clear()
    observations = Observations(book, timer=lambda: clock[0], every=60)
    for problem in refused:
        observations.note(Component.FUNCTION, "read", problem)
    # The thread has taken what was noted, and stands before the book.
    _until(lambda: book.asked == 1)
    clock[0] = 110.0
    for problem in later:
        observations.note(Component.FUNCTION, "read", problem)
    book.open.set()
    _until(lambda: book.refusals == 1)
    book.refusing = False
    clock[0] = 120.0
    observations.close(10)
    (found,) = book.of("read")
    assert (found.succeeded, found.failed, found.problem) == expected


def test_a_process_that_saw_nothing_has_no_thread() -> None:
    observations = Observations(Book(), timer=time.monotonic)
    before = threading.active_count()
    observations.close(1)
    assert threading.active_count() == before


@pytest.mark.parametrize(("accepted", "problem"), [(True, None), (False, "refused")])
def test_a_sink_is_noted_by_the_type_of_event(accepted: bool, problem: str | None) -> None:
    class Sink:
        def publish(self, event: Event) -> bool:  # noqa: ARG002
            return accepted

    book = Book()
    observations = Observations(book, timer=time.monotonic)
    sink = ObservedSink(Sink(), observations, refusal="refused")
    id_ = uuid7(now(), bytes)
    event = batch_event(id_, EventType.BATCH_CREATED, DEFAULT_TENANT, BatchId(id_))
    assert sink.publish(event) is accepted
    observations.close(10)
    (found,) = book.of(EventType.BATCH_CREATED)
    assert (found.component, found.succeeded is not None) == (Component.SENT, accepted)
    assert (found.problem or None) == problem


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        pytest.param("200", "", id="fine"),
        pytest.param("400", "", id="the line's own fault"),
        pytest.param("404", "", id="no such model"),
        pytest.param("503", "HTTP 503", id="overloaded"),
        pytest.param("401", "HTTP 401", id="refuses our key"),
        pytest.param("connection_lost", "connection lost", id="no answer"),
        pytest.param("interrupted", None, id="spot was taken away"),
    ],
)
def test_an_engine_is_known_by_what_it_says(answer: str, problem: str | None) -> None:
    book = Book()
    observations = Observations(book, timer=time.monotonic)
    ObservedEngine(observations, Pool.SPOT).answered(answer)
    observations.close(10)
    found = [(observation.component, observation.problem) for observation in book.of("spot")]
    assert found == ([] if problem is None else [(Component.ENGINE, problem)])

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
from lowtide.status.last_seen import Glimpse, Sight, SightedEngine, SightedSink, Sightings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.events.model import Event


class Book:
    """Keeps what is written, or refuses it."""

    def __init__(self) -> None:
        self.writes: list[Sequence[Glimpse]] = []
        self.refusing = False
        self.asked = 0
        self.refusals = 0
        self.open = threading.Event()
        self.open.set()

    def write(self, glimpses: Sequence[Glimpse]) -> None:
        self.asked += 1
        assert self.open.wait(10)
        if self.refusing:
            self.refusals += 1
            raise Unavailable("No answer.")
        self.writes.append(glimpses)

    def of(self, name: str) -> list[Glimpse]:
        return [glimpse for write in self.writes for glimpse in write if glimpse.name == name]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_is_seen_a_thousand_times_is_written_once() -> None:
    book = Book()
    sightings = Sightings(book, timer=time.monotonic, every=60)
    book.open.clear()
    for _ in range(1000):
        sightings.note(Sight.FUNCTION, "read")
    sightings.note(Sight.FUNCTION, "read", "HTTP 500")
    book.open.set()
    sightings.close(10)
    assert len(book.writes) <= 2
    last = book.of("read")[-1]
    assert (last.sight, last.problem) == (Sight.FUNCTION, "HTTP 500")
    assert last.failed is not None
    assert 0 <= last.failed < 10


def test_noting_never_waits_for_the_book() -> None:
    book = Book()
    book.open.clear()
    sightings = Sightings(book, timer=time.monotonic)
    sightings.note(Sight.FUNCTION, "split")
    _until(lambda: any(thread.name == "sightings" for thread in threading.enumerate()))
    sightings.note(Sight.FUNCTION, "finalize")
    assert book.writes == []
    book.open.set()
    sightings.close(10)
    assert {glimpse.name for write in book.writes for glimpse in write} == {"split", "finalize"}


def test_what_the_book_refuses_is_written_later_with_its_true_age() -> None:
    book, clock = Book(), [100.0]
    book.refusing = True
    sightings = Sightings(book, timer=lambda: clock[0], every=0.01)
    sightings.note(Sight.FUNCTION, "read")
    _until(lambda: book.refusals > 1)
    clock[0] = 130.0
    book.refusing = False
    _until(lambda: bool(book.writes))
    sightings.close(10)
    assert [glimpse.succeeded for glimpse in book.of("read")] == [30.0]


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
    sightings = Sightings(book, timer=lambda: clock[0], every=60)
    for problem in refused:
        sightings.note(Sight.FUNCTION, "read", problem)
    # The thread has taken what was noted, and stands before the book.
    _until(lambda: book.asked == 1)
    clock[0] = 110.0
    for problem in later:
        sightings.note(Sight.FUNCTION, "read", problem)
    book.open.set()
    _until(lambda: book.refusals == 1)
    book.refusing = False
    clock[0] = 120.0
    sightings.close(10)
    (found,) = book.of("read")
    assert (found.succeeded, found.failed, found.problem) == expected


def test_a_process_that_saw_nothing_has_no_thread() -> None:
    sightings = Sightings(Book(), timer=time.monotonic)
    before = threading.active_count()
    sightings.close(1)
    assert threading.active_count() == before


@pytest.mark.parametrize(("accepted", "problem"), [(True, None), (False, "refused")])
def test_a_sink_is_noted_by_the_type_of_event(accepted: bool, problem: str | None) -> None:
    class Sink:
        def publish(self, event: Event) -> bool:  # noqa: ARG002
            return accepted

    book = Book()
    sightings = Sightings(book, timer=time.monotonic)
    sink = SightedSink(Sink(), sightings, refusal="refused")
    id_ = uuid7(now(), bytes)
    event = batch_event(id_, EventType.BATCH_CREATED, DEFAULT_TENANT, BatchId(id_))
    assert sink.publish(event) is accepted
    sightings.close(10)
    (found,) = book.of(EventType.BATCH_CREATED)
    assert (found.sight, found.succeeded is not None) == (Sight.SENT, accepted)
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
    sightings = Sightings(book, timer=time.monotonic)
    SightedEngine(sightings, Pool.SPOT).answered(answer)
    sightings.close(10)
    found = [(glimpse.sight, glimpse.problem) for glimpse in book.of("spot")]
    assert found == ([] if problem is None else [(Sight.ENGINE, problem)])

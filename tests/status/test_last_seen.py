"""Observations of a process, written rarely and in a thread of their own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId, now, uuid7
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
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


class FakeStore(LastSeenStore):
    """A store that records writes, or rejects them."""

    def __init__(self) -> None:
        self.writes: list[Sequence[Observation]] = []
        self.rejecting = False
        self.attempts = 0
        self.rejections = 0
        self.open = threading.Event()
        self.open.set()

    def write(self, observed: Sequence[Observation]) -> None:
        self.attempts += 1
        assert self.open.wait(10)
        if self.rejecting:
            self.rejections += 1
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


def test_thousand_observations_take_at_most_two_writes() -> None:
    store = FakeStore()
    observations = Observations(store, timer=time.monotonic, every=60)
    store.open.clear()
    for _ in range(1000):
        observations.note(Component.FUNCTION, "read")
    observations.note(Component.FUNCTION, "read", "HTTP 500")
    store.open.set()
    observations.close(10)
    assert len(store.writes) <= 2
    last = store.of("read")[-1]
    assert (last.component, last.problem) == (Component.FUNCTION, "HTTP 500")
    assert last.failed is not None
    assert 0 <= last.failed < 10


def test_note_does_not_wait_for_store() -> None:
    store = FakeStore()
    store.open.clear()
    observations = Observations(store, timer=time.monotonic)
    observations.note(Component.FUNCTION, "split")
    _until(lambda: any(thread.name == "last-seen" for thread in threading.enumerate()))
    observations.note(Component.FUNCTION, "finalize")
    assert store.writes == []
    store.open.set()
    observations.close(10)
    assert {observation.name for write in store.writes for observation in write} == {
        "split",
        "finalize",
    }


def test_rejected_observation_is_written_later_with_true_age() -> None:
    store, clock = FakeStore(), [100.0]
    store.rejecting = True
    observations = Observations(store, timer=lambda: clock[0], every=0.01)
    observations.note(Component.FUNCTION, "read")
    _until(lambda: store.rejections > 1)
    clock[0] = 130.0
    store.rejecting = False
    _until(lambda: bool(store.writes))
    observations.close(10)
    assert [observation.succeeded for observation in store.of("read")] == [30.0]


@pytest.mark.parametrize(
    ("rejected", "later", "expected"),
    [
        pytest.param([None], ["HTTP 500"], (20.0, 10.0, "HTTP 500"), id="success, failure"),
        pytest.param(["HTTP 500"], [None], (10.0, 20.0, "HTTP 500"), id="failure, success"),
        pytest.param(["HTTP 500"], ["HTTP 503"], (None, 10.0, "HTTP 503"), id="two failures"),
        pytest.param([None, "HTTP 500"], [None], (10.0, 20.0, "HTTP 500"), id="both, success"),
    ],
)
def test_later_observations_merge_with_rejected_ones(
    rejected: list[str | None],
    later: list[str | None],
    expected: tuple[float | None, float | None, str],
) -> None:
    store, clock = FakeStore(), [100.0]
    store.rejecting = True
    store.open.clear()
    observations = Observations(store, timer=lambda: clock[0], every=60)
    for problem in rejected:
        observations.note(Component.FUNCTION, "read", problem)
    # The thread holds the observations and waits for the store.
    _until(lambda: store.attempts == 1)
    clock[0] = 110.0
    for problem in later:
        observations.note(Component.FUNCTION, "read", problem)
    store.open.set()
    _until(lambda: store.rejections == 1)
    store.rejecting = False
    clock[0] = 120.0
    observations.close(10)
    (written,) = store.of("read")
    assert (written.succeeded, written.failed, written.problem) == expected


def test_process_without_observations_has_no_thread() -> None:
    observations = Observations(FakeStore(), timer=time.monotonic)
    before = threading.active_count()
    observations.close(1)
    assert threading.active_count() == before


@pytest.mark.parametrize(("accepted", "problem"), [(True, None), (False, "refused")])
def test_sink_is_observed_by_event_type(accepted: bool, problem: str | None) -> None:
    class Sink:
        def publish(self, event: Event) -> bool:  # noqa: ARG002
            return accepted

    store = FakeStore()
    observations = Observations(store, timer=time.monotonic)
    sink = ObservedSink(Sink(), observations, refusal="refused")
    id_ = uuid7(now(), bytes)
    event = batch_event(id_, EventType.BATCH_CREATED, DEFAULT_TENANT, BatchId(id_))
    assert sink.publish(event) is accepted
    observations.close(10)
    (observation,) = store.of(EventType.BATCH_CREATED)
    assert (observation.component, observation.succeeded is not None) == (Component.SENT, accepted)
    assert (observation.problem or None) == problem


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        pytest.param("200", "", id="success"),
        pytest.param("400", "", id="invalid request"),
        pytest.param("404", "", id="unknown model"),
        pytest.param("503", "HTTP 503", id="overloaded"),
        pytest.param("401", "HTTP 401", id="rejected key"),
        pytest.param("connection_lost", "connection lost", id="no answer"),
        pytest.param("interrupted", None, id="spot preemption"),
    ],
)
def test_engine_answer_is_observed(answer: str, problem: str | None) -> None:
    store = FakeStore()
    observations = Observations(store, timer=time.monotonic)
    ObservedEngine(observations, FleetPool(DEFAULT_FLEET, Pool.SPOT)).answered(answer)
    observations.close(10)
    written = [(observation.component, observation.problem) for observation in store.of("spot")]
    assert written == ([] if problem is None else [(Component.ENGINE, problem)])

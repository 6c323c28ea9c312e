"""Scheduler state: starts, measured capacity, and the decisions that follow."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lowtide.core.ids import BatchId
from lowtide.core.pools import Pool
from lowtide.planning.demand import Capacity, Rate, RateSample
from lowtide.planning.escalation import Move, OpenBatch
from lowtide.planning.state import SchedulerState, decide

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CAPACITY = Capacity(rate=2.0, replicas=2, cold_start=180.0, margin=0.0, tick=10.0, in_flight=0)
SLOW = Rate().fold([RateSample(50, 50.0)] * 50)
SLOWER = Rate().fold([RateSample(25, 50.0)] * 50)


def _ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("present", "wished", "starts"),
    [
        pytest.param(0, [], [], id="none"),
        pytest.param(2, [], [0.0, 0.0], id="present, not wanted"),
        pytest.param(0, [60.0, 0.0], [120.0, 180.0], id="starting"),
        pytest.param(1, [60.0, 20.0], [0.0, 160.0], id="first one present"),
        pytest.param(0, [180.0], [180.0], id="overdue"),
        pytest.param(0, [-5.0], [180.0], id="wanted in the future"),
        pytest.param(2, [60.0], [0.0, 0.0], id="more than wanted"),
    ],
)
def test_starts_follow_present_and_wanted_replicas(
    present: int, wished: list[float], starts: list[float]
) -> None:
    state = SchedulerState(NOW, (), present, tuple(_ago(seconds) for seconds in wished))
    assert state.starts(180.0) == starts


@pytest.mark.parametrize(
    ("wished", "replicas", "after"),
    [
        pytest.param([], 2, [0, 0], id="all new"),
        pytest.param([90, 60], 1, [90], id="last one removed"),
        pytest.param([90], 2, [90, 0], id="one added"),
        pytest.param([90], 0, [], id="none"),
    ],
)
def test_wishes_keep_their_times(wished: list[int], replicas: int, after: list[int]) -> None:
    state = SchedulerState(NOW, (), wished=tuple(_ago(seconds) for seconds in wished))
    assert state.wishes(replicas) == tuple(_ago(seconds) for seconds in after)


@pytest.mark.parametrize(
    ("models", "rates", "rate"),
    [
        pytest.param({"a"}, {}, 2.0, id="not measured: prior"),
        pytest.param({"a"}, {"a": SLOW}, 1.0, id="measured"),
        pytest.param({"a", "b"}, {"a": SLOW, "b": SLOWER}, 0.5, id="slowest model"),
        pytest.param({"a"}, {"a": SLOW, "b": SLOWER}, 1.0, id="only open models"),
        pytest.param({"a"}, {"": SLOWER}, 0.5, id="workers of several models"),
    ],
)
def test_capacity_uses_measured_rate(models: set[str], rates: dict[str, Rate], rate: float) -> None:
    state = SchedulerState(NOW, (), models=frozenset(models), rates=rates)
    assert state.measured(CAPACITY).rate == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(
    ("searches", "found", "seconds", "in_flight"),
    [
        pytest.param(True, 250, 600, 250, id="found"),
        pytest.param(True, 250, 200, 32, id="found, but the rate is hardly measured"),
        pytest.param(True, 250, 0, 32, id="found, but the rate is not measured"),
        pytest.param(True, None, 600, 32, id="not yet"),
        pytest.param(False, 250, 600, 32, id="a fixed number since then"),
    ],
)
def test_plan_counts_on_found_requests_in_flight(
    searches: bool, found: int | None, seconds: int, in_flight: int
) -> None:
    capacity = replace(CAPACITY, in_flight=32, searches=searches)
    rate = Rate().fold([RateSample(2, 1.0)] * seconds)
    rates = {"a": rate} if seconds else {}
    state = SchedulerState(NOW, (), concurrency=found, models=frozenset({"a"}), rates=rates)
    measured = state.measured(capacity)
    assert measured.in_flight == in_flight
    assert measured.lost == pytest.approx(in_flight / 2.0)


def test_slow_rate_and_retries_escalate_earlier() -> None:
    batch = OpenBatch(BatchId(uuid.UUID(int=1)), NOW + timedelta(seconds=1190), 4000)
    safe = SchedulerState(NOW, (batch,), models=frozenset({"a"}))
    assert decide(safe, CAPACITY).replicas == 0
    slow = SchedulerState(NOW, (batch,), models=frozenset({"a"}), rates={"a": SLOW})
    assert decide(slow, CAPACITY).at_risk == {batch.id}
    retried = SchedulerState(NOW, (batch,), ended=1000, retried=5)
    assert decide(retried, CAPACITY).replicas == 1


FAST = Capacity(rate=1.0, replicas=2, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)


@pytest.mark.parametrize(
    ("paused", "left", "spot", "dedicated", "escalated", "returned", "replicas", "at_risk"),
    [
        pytest.param((), 60, 110, 0, 10, 0, 1, False, id="none paused: as late as possible"),
        pytest.param((Pool.SPOT,), 60, 110, 0, 10, 0, 1, False, id="spot: still in time"),
        pytest.param((Pool.SPOT,), 60, 130, 0, 20, 0, 2, True, id="spot: infeasible batch at risk"),
        pytest.param((), 1000, 0, 30, 0, 30, 0, False, id="none paused: returns to spot"),
        pytest.param((Pool.SPOT,), 1000, 0, 30, 0, 0, 0, False, id="spot: nothing returns"),
        pytest.param(
            (Pool.DEDICATED,), 60, 110, 0, 0, 0, 0, True, id="dedicated: nothing escalates"
        ),
        pytest.param((Pool.DEDICATED,), 1000, 0, 30, 0, 30, 0, True, id="dedicated: all returns"),
        pytest.param(tuple(Pool), 1000, 9, 30, 0, 0, 0, True, id="both: nothing moves"),
    ],
)
def test_plan_respects_paused_pools(
    paused: tuple[Pool, ...],
    left: float,
    spot: int,
    dedicated: int,
    escalated: int,
    returned: int,
    replicas: int,
    at_risk: bool,
) -> None:
    batch = OpenBatch(
        BatchId(uuid.UUID(int=1)), NOW + timedelta(seconds=left), spot, dedicated=dedicated
    )
    plan = decide(SchedulerState(NOW, (batch,), paused=frozenset(paused)), FAST)
    assert plan.escalations == ((Move(batch.id, escalated),) if escalated else ())
    assert plan.returns == ((Move(batch.id, returned),) if returned else ())
    assert (plan.replicas, plan.at_risk) == (replicas, {batch.id} if at_risk else frozenset())


def test_workers_of_paused_pool_are_no_capacity() -> None:
    batch = OpenBatch(BatchId(uuid.UUID(int=1)), NOW + timedelta(seconds=60), 1)
    state = SchedulerState(NOW, (batch,), present=2, paused=frozenset({Pool.DEDICATED}))
    assert decide(state, FAST).at_risk == {batch.id}


def test_replica_without_engine_does_not_count() -> None:
    state = SchedulerState(NOW, (), present=1, away=1)
    assert state.measured(CAPACITY).replicas == 1
    none_available = SchedulerState(NOW, (), stranded={Pool.DEDICATED: 1}, away=1)
    assert none_available.measured(CAPACITY).replicas == 0


def test_pool_without_engine_is_planned_like_paused_pool() -> None:
    batch = OpenBatch(BatchId(uuid.UUID(int=1)), NOW + timedelta(hours=9), spot=5, dedicated=5)
    for pool in Pool:
        stranded = decide(SchedulerState(NOW, (batch,), stranded={pool: 2}), CAPACITY)
        paused = decide(SchedulerState(NOW, (batch,), paused=frozenset({pool})), CAPACITY)
        assert stranded == paused
    assert decide(SchedulerState(NOW, (batch,)), CAPACITY).returns == (Move(batch.id, 5),)

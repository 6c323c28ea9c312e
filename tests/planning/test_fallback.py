"""Moves between fleets: what is late goes to a fallback, as far as that holds its own deadlines."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.ids import BatchId
from lowtide.core.pools import Pool
from lowtide.planning import fallback
from lowtide.planning.demand import Capacity, Rate, RateSample
from lowtide.planning.escalation import OpenBatch, SpareRoom, plan_tick
from lowtide.planning.fallback import FleetMove, fall_back
from lowtide.planning.state import SchedulerState, decide

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# A request a second and replica.
ONE = Capacity(rate=1.0, replicas=1, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)
TEN = Capacity(rate=1.0, replicas=10, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)
GPU, CPU = "gpu", "cpu"


def _batch(number: int, lines: int, seconds: float, *, running: int = 0) -> OpenBatch:
    deadline = NOW + timedelta(seconds=seconds)
    return OpenBatch(BatchId(uuid.UUID(int=number)), deadline, spot=lines, running_spot=running)


def _moves(
    gpu: list[OpenBatch],
    cpu: list[OpenBatch],
    *,
    small: Capacity = ONE,
    large: Capacity = TEN,
    paused: frozenset[Pool] = frozenset(),
) -> list[FleetMove]:
    states = {
        GPU: SchedulerState(NOW, tuple(gpu), fleet=GPU),
        CPU: SchedulerState(NOW, tuple(cpu), fleet=CPU, paused=paused),
    }
    capacities = {GPU: small, CPU: large}
    plans = {name: decide(state, capacities[name]) for name, state in states.items()}
    return fall_back(states, plans, capacities, {GPU: CPU})


def test_nothing_moves_while_deadlines_hold() -> None:
    assert _moves([_batch(1, 100, 100.0)], []) == []


def test_late_requests_move() -> None:
    late = _batch(1, 150, 100.0)
    assert _moves([late], []) == [FleetMove(late.id, GPU, CPU, 50)]


def test_requests_move_once_for_several_late_batches() -> None:
    first, second = _batch(1, 150, 100.0), _batch(2, 20, 110.0)
    assert _moves([second, first], []) == [
        FleetMove(first.id, GPU, CPU, 50), FleetMove(second.id, GPU, CPU, 10),
    ]  # fmt: skip


def test_running_requests_stay() -> None:
    late = _batch(1, 10, 100.0, running=140)
    assert _moves([late], []) == [FleetMove(late.id, GPU, CPU, 10)]


@pytest.mark.parametrize(
    ("own", "moved"),
    [
        pytest.param(0, 500, id="idle"),
        pytest.param(800, 100, id="busy: its replicas start at its next tick"),
        pytest.param(1000, 0, id="full"),
        pytest.param(1200, 0, id="late itself"),
    ],
)
def test_fallback_takes_what_its_own_promises_leave(own: int, moved: int) -> None:
    late = _batch(1, 600, 100.0)
    moves = _moves([late], [_batch(2, own, 100.0)] if own else [])
    assert sum(move.lines for move in moves) == moved


@pytest.mark.parametrize("pool", [Pool.DEDICATED, Pool.SPOT])
def test_paused_fallback_takes_nothing(pool: Pool) -> None:
    moves = _moves([_batch(1, 150, 100.0)], [], paused=frozenset({pool}))
    assert bool(moves) is (pool is Pool.SPOT)


@pytest.mark.parametrize(
    ("seconds", "moved"),
    [
        pytest.param(3600.0, 0, id="far away: spot may do it"),
        pytest.param(30.0, 0, id="the next tick is soon enough"),
        pytest.param(29.0, 100, id="the next tick is too late for one"),
        pytest.param(15.0, 50, id="too late for half"),
    ],
)
def test_requests_of_a_fleet_without_dedicated_move_as_late_as_is_safe(
    seconds: float, moved: int
) -> None:
    without = replace(ONE, replicas=0)
    moves = _moves([_batch(1, 100, seconds)], [], small=without)
    assert sum(move.lines for move in moves) == moved


def test_fallback_that_runs_a_part_of_the_batch_counts_it() -> None:
    late, part = _batch(1, 600, 100.0), _batch(1, 800, 100.0)
    assert _moves([late], [part]) == [FleetMove(late.id, GPU, CPU, 100)]


def _rate(per_second: float) -> Rate:
    return Rate().fold([RateSample(int(per_second * 60), 60.0)] * 200)


def test_slower_model_counts_for_all_that_the_fallback_runs_already() -> None:
    rates = {"small": _rate(10.0), "big": _rate(0.5)}
    ours, theirs = _batch(1, 8000, 1000.0), _batch(2, 2000, 1000.0)
    states = {
        GPU: SchedulerState(NOW, (ours,), models=frozenset({"big"}), fleet=GPU),
        CPU: SchedulerState(NOW, (theirs,), models=frozenset({"small"}), rates=rates, fleet=CPU),
    }
    capacities = {GPU: replace(ONE, rate=0.5), CPU: TEN}
    plans = {name: decide(state, capacities[name]) for name, state in states.items()}
    moves = fall_back(states, plans, capacities, {GPU: CPU})
    joined = [OpenBatch(ours.id, ours.deadline, spot=0, dedicated=move.lines) for move in moves]
    assert joined
    mixed = replace(states[CPU], batches=(theirs, *joined), models=frozenset(rates))
    assert decide(mixed, TEN).at_risk == frozenset()


def test_fleets_that_wait_for_the_same_fallback_leave_room_for_each_other() -> None:
    def moved(seconds_ago: float) -> dict[str, int]:
        ours, theirs = (_batch(number, 4900, 1000.0 - seconds_ago) for number in (1, 2))
        states = {
            GPU: SchedulerState(NOW, (ours,), fleet=GPU),
            "other": SchedulerState(NOW, (theirs,), fleet="other"),
            CPU: SchedulerState(NOW, (), fleet=CPU),
        }
        without = replace(ONE, replicas=0)
        capacities = {GPU: without, "other": without, CPU: TEN}
        plans = {name: decide(state, capacities[name]) for name, state in states.items()}
        moves = fall_back(states, plans, capacities, {GPU: CPU, "other": CPU})
        return {move.source: move.lines for move in moves}

    assert moved(0.0) == {}
    assert moved(10.0) == {GPU: 4900, "other": 4900}


def test_requests_that_no_spot_worker_runs_move_at_once() -> None:
    late = _batch(1, 100, 3600.0)
    paused = SchedulerState(NOW, (late,), paused=frozenset(Pool), fleet=GPU)
    states = {GPU: paused, CPU: SchedulerState(NOW, (), fleet=CPU)}
    capacities = {GPU: ONE, CPU: TEN}
    plans = {name: decide(state, capacities[name]) for name, state in states.items()}
    moves = fall_back(states, plans, capacities, {GPU: CPU})
    assert moves == [FleetMove(late.id, GPU, CPU, 100)]


def test_deadline_that_the_fallback_has_missed_does_not_keep_others_away() -> None:
    hopeless, late = _batch(2, 2000, 100.0), _batch(1, 1500, 1000.0)
    assert _moves([late], [hopeless]) == [FleetMove(late.id, GPU, CPU, 500)]


def test_many_batches_are_planned_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    by = SpareRoom.by

    def counted(room: SpareRoom, deadline: datetime) -> int:
        nonlocal asked
        asked += 1
        return by(room, deadline)

    monkeypatch.setattr(SpareRoom, "by", counted)
    plans = MagicMock(side_effect=plan_tick)
    monkeypatch.setattr(fallback, "plan_tick", plans)
    count = 2000
    ours = [_batch(number, 10, 100.0 + number) for number in range(count)]
    theirs = [_batch(count + number, 9, 100.0 + number) for number in range(count)]
    assert _moves(ours, theirs)
    assert asked <= count
    assert plans.call_count == 1


_BATCHES = st.lists(st.tuples(st.integers(0, 500), st.floats(1.0, 300.0)), max_size=5)


@given(gpu=_BATCHES, cpu=_BATCHES)
def test_fallback_never_endangers_a_deadline_of_its_own(
    gpu: list[tuple[int, float]], cpu: list[tuple[int, float]]
) -> None:
    ours = [_batch(n, *each) for n, each in enumerate(gpu, 1)]
    theirs = [_batch(100 + n, *each) for n, each in enumerate(cpu, 1)]
    before = decide(SchedulerState(NOW, tuple(theirs)), TEN).at_risk
    moves = _moves(ours, theirs)
    by_id = {batch.id: batch for batch in ours}
    joined = [
        OpenBatch(move.batch, by_id[move.batch].deadline, spot=0, dedicated=move.lines)
        for move in moves
    ]
    after = decide(SchedulerState(NOW, (*theirs, *joined)), TEN).at_risk
    assert after <= before
    assert all(0 < move.lines <= by_id[move.batch].spot for move in moves)

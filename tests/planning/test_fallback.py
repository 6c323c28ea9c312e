"""Moves between fleets: what is late goes to a fallback, as far as that holds its own deadlines."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.ids import BatchId
from lowtide.core.pools import Pool
from lowtide.planning.demand import Capacity
from lowtide.planning.escalation import OpenBatch
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

"""The laziest safe schedule."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.domain.escalation import Capacity, Escalation, OpenBatch, plan_escalations
from lowtide.domain.ids import BatchId

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Two replicas of one line a second; nothing is lost to starting.
TWO = Capacity(rate=1.0, replicas=2, cold_start=0.0, margin=0.0, tick=10.0)


def _batch(
    number: int, seconds: float, spot: int, running: int = 0, dedicated: int = 0
) -> OpenBatch:
    deadline = NOW + timedelta(seconds=seconds)
    return OpenBatch(BatchId(uuid.UUID(int=number)), deadline, spot, running, dedicated)


def _moves(*moves: tuple[int, int]) -> tuple[Escalation, ...]:
    return tuple(Escalation(BatchId(uuid.UUID(int=batch)), lines) for batch, lines in moves)


@pytest.mark.parametrize(
    ("batches", "moves", "at_risk"),
    [
        pytest.param([], (), (), id="nothing to do"),
        pytest.param([_batch(1, 1000, 100)], (), (), id="safe"),
        pytest.param([_batch(1, 60, 100)], (), (), id="just safe for one more tick"),
        pytest.param([_batch(1, 60, 101)], ((1, 1),), (), id="one line too many"),
        pytest.param([_batch(1, 60, 120)], ((1, 20),), (), id="just feasible"),
        pytest.param([_batch(1, 60, 121)], ((1, 21),), (1,), id="infeasible by one line"),
        pytest.param([_batch(1, 5, 4)], ((1, 4),), (), id="due before the next tick"),
        pytest.param([_batch(1, -5, 4)], ((1, 4),), (1,), id="overdue"),
        pytest.param([_batch(1, 60, 101, dedicated=1)], ((1, 1),), (), id="some moved before"),
        pytest.param([_batch(1, 60, 10, running=95)], ((1, 5),), (), id="what runs stays"),
        pytest.param([_batch(1, 60, 2, running=200)], ((1, 2),), (1,), id="never more than wait"),
        pytest.param(
            [_batch(2, 60, 60), _batch(1, 50, 50)], ((1, 10),), (), id="earliest deadline first"
        ),
        pytest.param(
            [_batch(1, 60, 20), _batch(2, 61, 200)], ((1, 20), (2, 98)), (2,), id="both, in order"
        ),
        pytest.param([_batch(1, 60, 80), _batch(2, 600, 500)], (), (), id="both safe"),
        pytest.param([_batch(9, 60, 60), _batch(3, 60, 60)], ((3, 20),), (), id="ties by id"),
    ],
)
def test_plans(
    batches: list[OpenBatch], moves: tuple[tuple[int, int], ...], at_risk: tuple[int, ...]
) -> None:
    plan = plan_escalations(batches, NOW, TWO)
    assert plan.escalations == _moves(*moves)
    assert plan.at_risk == {BatchId(uuid.UUID(int=number)) for number in at_risk}


@pytest.mark.parametrize(
    ("cold_start", "margin"),
    [pytest.param(30.0, 0.0, id="start"), pytest.param(0.0, 30.0, id="margin")],
)
def test_time_that_dedicated_does_not_have_is_not_counted(cold_start: float, margin: float) -> None:
    capacity = Capacity(1.0, 2, cold_start=cold_start, margin=margin, tick=10.0)
    assert plan_escalations([_batch(1, 90, 101)], NOW, capacity).escalations == _moves((1, 1))
    assert plan_escalations([_batch(1, 90, 100)], NOW, capacity).escalations == ()


def test_without_dedicated_replicas_everything_stays_on_spot() -> None:
    none = Capacity(rate=1.0, replicas=0, cold_start=0.0, margin=0.0, tick=10.0)
    plan = plan_escalations([_batch(1, 60, 10), _batch(2, 600, 10)], NOW, none)
    assert plan.escalations == ()


_batches = st.lists(
    st.builds(
        _batch,
        st.integers(1, 50),
        st.floats(-100, 5000),
        st.integers(0, 5000),
        st.integers(0, 200),
        st.integers(0, 200),
    ),
    max_size=8,
    unique_by=lambda batch: batch.id,
)
_capacities = st.builds(
    Capacity,
    rate=st.floats(0.01, 50),
    replicas=st.integers(1, 8),
    cold_start=st.floats(0, 300),
    margin=st.floats(0, 60),
    tick=st.floats(1, 60),
)


def _room(batch: OpenBatch, capacity: Capacity, ahead: float) -> float:
    left = (batch.deadline - NOW).total_seconds() - capacity.cold_start - capacity.margin - ahead
    return capacity.rate * capacity.replicas * max(left, 0.0)


@given(_batches, _capacities)
def test_the_bound_holds_or_everything_moved(batches: list[OpenBatch], capacity: Capacity) -> None:
    plan = plan_escalations(batches, NOW, capacity)
    moved = {move.batch: move.lines for move in plan.escalations}
    assert len(moved) == len(plan.escalations)
    ordered = sorted(batches, key=lambda batch: (batch.deadline, batch.id))
    for batch in ordered:
        assert 0 <= moved.get(batch.id, 0) <= batch.spot
    for position, batch in enumerate(ordered, 1):
        until = ordered[:position]
        left = sum(b.open - b.dedicated - moved.get(b.id, 0) for b in until)
        movable = sum(b.spot - moved.get(b.id, 0) for b in until)
        assert left <= _room(batch, capacity, capacity.tick) + 1e-6 or movable == 0
        assert (batch.id in plan.at_risk) == (
            sum(b.open for b in until) > _room(batch, capacity, 0.0)
        )


@given(_batches, _capacities)
def test_one_line_less_would_break_it(batches: list[OpenBatch], capacity: Capacity) -> None:
    plan = plan_escalations(batches, NOW, capacity)
    if not plan.escalations:
        return
    moved = {move.batch: move.lines for move in plan.escalations}
    ordered = sorted(batches, key=lambda batch: (batch.deadline, batch.id))
    # Take a line from the last move: some bound up to there must break by it.
    last = max(index for index, batch in enumerate(ordered) if batch.id in moved)
    moved[ordered[last].id] -= 1
    assert any(
        sum(b.open - b.dedicated - moved.get(b.id, 0) for b in ordered[:position])
        > _room(ordered[position - 1], capacity, capacity.tick) - 1e-6
        for position in range(last + 1, len(ordered) + 1)
    )

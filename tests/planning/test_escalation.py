"""The laziest safe schedule: the decisions of one tick."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.ids import BatchId
from lowtide.planning.demand import Capacity
from lowtide.planning.escalation import Move, OpenBatch, Plan, plan_tick

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Two replicas at one request a second each, without start-up time or margins.
TWO = Capacity(rate=1.0, replicas=2, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)


def _batch(
    number: int, seconds: float, spot: int, running: int = 0, dedicated: int = 0, busy: int = 0
) -> OpenBatch:
    deadline = NOW + timedelta(seconds=seconds)
    return OpenBatch(BatchId(uuid.UUID(int=number)), deadline, spot, running, dedicated, busy)


def _moves(*moves: tuple[int, int]) -> tuple[Move, ...]:
    return tuple(Move(BatchId(uuid.UUID(int=batch)), lines) for batch, lines in moves)


@pytest.mark.parametrize(
    ("batches", "moves", "replicas", "at_risk"),
    [
        pytest.param([], (), 0, (), id="nothing to do"),
        pytest.param([_batch(1, 1000, 100)], (), 0, (), id="safe"),
        pytest.param([_batch(1, 60, 100)], (), 0, (), id="just safe for one more tick"),
        pytest.param([_batch(1, 60, 101)], ((1, 10),), 1, (), id="one request too many"),
        pytest.param([_batch(1, 60, 111)], ((1, 20),), 2, (), id="more than one replica can do"),
        pytest.param([_batch(1, 60, 120)], ((1, 20),), 2, (), id="just feasible"),
        pytest.param([_batch(1, 60, 121)], ((1, 20),), 2, (1,), id="infeasible by one request"),
        pytest.param([_batch(1, 5, 4)], ((1, 4),), 1, (), id="deadline before the next tick"),
        pytest.param([_batch(1, -5, 4)], ((1, 4),), 2, (1,), id="overdue"),
        pytest.param([_batch(1, 60, 101, dedicated=1)], ((1, 9),), 1, (), id="some moved before"),
        pytest.param([_batch(1, 60, 100, 0, 10, 1)], ((1, 9),), 2, (), id="some run on dedicated"),
        pytest.param([_batch(1, 60, 10, running=95)], ((1, 10),), 1, (), id="running ones stay"),
        pytest.param(
            [_batch(2, 60, 60), _batch(1, 50, 50)], ((1, 10),), 1, (), id="earliest deadline first"
        ),
        pytest.param(
            [_batch(1, 60, 5), _batch(2, 61, 200)], ((1, 5), (2, 15)), 2, (2,), id="both, in order"
        ),
        pytest.param([_batch(1, 60, 80), _batch(2, 600, 500)], (), 0, (), id="both safe"),
        pytest.param([_batch(9, 60, 60), _batch(3, 60, 60)], ((3, 20),), 2, (), id="ties by id"),
    ],
)
def test_tick_escalates_only_what_deadlines_require(
    batches: list[OpenBatch],
    moves: tuple[tuple[int, int], ...],
    replicas: int,
    at_risk: tuple[int, ...],
) -> None:
    plan = plan_tick(batches, NOW, TWO)
    assert (plan.escalations, plan.replicas) == (_moves(*moves), replicas)
    assert plan.at_risk == {BatchId(uuid.UUID(int=number)) for number in at_risk}
    assert (plan.returns, plan.revocations) == ((), ())


@pytest.mark.parametrize(
    ("batches", "revoked"),
    [
        pytest.param([_batch(1, 60, 0, 100)], (), id="safe while spot runs them"),
        pytest.param([_batch(1, 60, 0, 101)], ((1, 1),), id="the last safe moment"),
        pytest.param([_batch(1, 60, 0, 120)], ((1, 20),), id="all that dedicated can do"),
        pytest.param([_batch(1, 60, 0, 500)], ((1, 20),), id="no more than that, even at risk"),
        pytest.param([_batch(1, 60, 4, 101)], ((1, 1),), id="waiting ones first"),
        pytest.param([_batch(1, 60, 5, 96, 0, 3)], (), id="enough are waiting or running"),
        pytest.param(
            [_batch(1, 60, 0, 110), _batch(2, 900, 50)],
            ((1, 10),),
            id="a later batch does not help",
        ),
    ],
)
def test_spot_claims_are_revoked_at_last_safe_moment(
    batches: list[OpenBatch], revoked: tuple[tuple[int, int], ...]
) -> None:
    assert plan_tick(batches, NOW, TWO).revocations == _moves(*revoked)


@pytest.mark.parametrize(
    ("batches", "returned"),
    [
        pytest.param([_batch(1, 1000, 10, 0, 30)], ((1, 30),), id="spot caught up"),
        pytest.param([_batch(1, 1000, 10, 0, 30, 5)], ((1, 30),), id="running ones stay"),
        pytest.param([_batch(1, 60, 50, 0, 51)], ((1, 41),), id="all but the needed ones"),
        pytest.param([_batch(1, 60, 91, 0, 10)], (), id="none"),
        pytest.param(
            [_batch(1, 60, 0, 0, 101), _batch(2, 99, 0, 0, 7)], ((1, 91), (2, 7)), id="latest first"
        ),
        pytest.param(
            [replace(_batch(1, 1000, 0, 0, 30), pinned=True), _batch(2, 1000, 0, 0, 7)],
            ((2, 7),),
            id="pinned ones stay",
        ),
    ],
)
def test_unneeded_requests_return_to_spot(
    batches: list[OpenBatch], returned: tuple[tuple[int, int], ...]
) -> None:
    plan = plan_tick(batches, NOW, TWO)
    assert (plan.returns, plan.escalations) == (_moves(*returned), ())


@pytest.mark.parametrize(
    ("changes", "max_requests"),
    [
        pytest.param({"cold_start": 30.0}, 100, id="cold start"),
        pytest.param({"margin": 30.0}, 100, id="margin"),
        pytest.param({"in_flight": 30}, 100, id="running time"),
        pytest.param({"attempts": 2.0}, 80, id="retries"),
    ],
)
def test_lost_time_reduces_dedicated_capacity(changes: dict[str, Any], max_requests: int) -> None:
    capacity = replace(TWO, **changes)
    assert plan_tick([_batch(1, 90, max_requests)], NOW, capacity).replicas == 0
    assert plan_tick([_batch(1, 90, max_requests + 1)], NOW, capacity).replicas == 1


@pytest.mark.parametrize(
    ("starts", "requests", "replicas"),
    [
        pytest.param([0.0, 0.0], 60, 0, id="it could restart in time"),
        pytest.param([0.0, 0.0], 61, 1, id="wanted again within its start"),
        pytest.param([0.0, 0.0], 101, 2, id="both wanted again"),
        pytest.param([0.0], 101, 1, id="only the present one stays"),
        pytest.param([0.0], 120, 1, id="a warm one needs no start"),
        pytest.param([], 121, 1, id="a cold one needs a start"),
        pytest.param([], 141, None, id="too late for cold ones"),
        pytest.param([15.0], 120, 1, id="one is starting"),
        pytest.param([], 140, 2, id="all cold ones at once"),
    ],
)
def test_warm_replica_stops_only_if_it_can_restart_in_time(
    starts: list[float], requests: int, replicas: int | None
) -> None:
    plan = plan_tick([_batch(1, 100, requests)], NOW, replace(TWO, cold_start=30.0), starts)
    assert (plan.at_risk != frozenset()) == (replicas is None)
    assert plan.replicas == (2 if replicas is None else replicas)


def test_without_dedicated_replicas_requests_return_to_spot() -> None:
    none = replace(TWO, replicas=0)
    plan = plan_tick([_batch(1, 60, 10, 0, 5), _batch(2, 600, 10)], NOW, none)
    assert plan == Plan(
        returns=_moves((1, 5)), at_risk=frozenset(m.batch for m in _moves((1, 1), (2, 1)))
    )


@pytest.mark.parametrize(
    ("batches", "slack"),
    [
        pytest.param([], None, id="no open batches"),
        pytest.param([_batch(1, 60, 100)], 10.0, id="one batch"),
        pytest.param([_batch(1, 60, 100), _batch(2, 70, 30)], 5.0, id="minimum"),
        pytest.param([_batch(1, 60, 140)], -10.0, id="too late"),
    ],
)
def test_slack_is_time_until_all_replicas_must_run(batches: list[OpenBatch], slack: float) -> None:
    assert plan_tick(batches, NOW, TWO).slack == slack


def test_ten_thousand_batches_need_few_comparisons() -> None:
    comparisons: list[datetime] = []

    class Counted(datetime):
        def __lt__(self, other: Any) -> bool:
            comparisons.append(self)
            return super().__lt__(other)

    batches = [
        replace(
            _batch(number, 0, 3, 1, 1, 1),
            deadline=Counted.fromtimestamp(NOW.timestamp() + (number * 7919) % 10007, UTC),
        )
        for number in range(10_000)
    ]
    plan = plan_tick(batches, NOW, replace(TWO, replicas=16))
    assert plan.at_risk
    assert len(comparisons) < 10_000 * 20


_counts = st.integers(0, 300)
_batches = st.lists(
    st.builds(
        _batch,
        st.integers(1, 50),
        st.integers(-100, 5000),
        st.integers(0, 3000),
        _counts,
        _counts,
        _counts,
    ),
    max_size=8,
    unique_by=lambda batch: batch.id,
)
_capacities = st.builds(
    Capacity,
    rate=st.sampled_from([0.01, 0.1, 0.5, 1.0, 3.0, 20.0]),
    replicas=st.integers(1, 8),
    cold_start=st.sampled_from([0.0, 7.0, 180.0]),
    margin=st.sampled_from([0.0, 30.0]),
    tick=st.sampled_from([1.0, 10.0, 300.0]),
    in_flight=st.integers(0, 40),
)
_starts = st.lists(st.integers(0, 180).map(float), max_size=8)


def _starts_of(capacity: Capacity, starts: list[float], on: int) -> tuple[list[float], list[float]]:
    """Return the start of each replica if `on` are on now: from now, and after the next tick."""
    known = sorted(min(start, capacity.cold_start) for start in starts)[: capacity.replicas]
    padded = known + [capacity.cold_start] * (capacity.replicas - len(known))
    others = [capacity.tick + capacity.cold_start] * (capacity.replicas - on)
    return padded[:on] + others, [max(start, capacity.tick) for start in padded[:on]] + others


def _requests_until(capacity: Capacity, starts: list[float], batch: OpenBatch) -> float:
    left = (batch.deadline - NOW).total_seconds() - capacity.lost
    return capacity.line_rate * sum(max(left - start, 0.0) for start in starts)


def _apply(batches: list[OpenBatch], plan: Plan) -> list[OpenBatch]:
    escalated, returned, revoked = (
        {move.batch: move.lines for move in moves}
        for moves in (plan.escalations, plan.returns, plan.revocations)
    )
    return [
        replace(
            batch,
            spot=batch.spot - escalated.get(batch.id, 0) + returned.get(batch.id, 0),
            running_spot=batch.running_spot - revoked.get(batch.id, 0),
            dedicated=batch.dedicated
            + escalated.get(batch.id, 0)
            + revoked.get(batch.id, 0)
            - returned.get(batch.id, 0),
        )
        for batch in batches
    ]


def _prefixes(batches: list[OpenBatch]) -> list[tuple[OpenBatch, int, int]]:
    """Return each batch, by deadline, with the open and the dedicated requests up to it."""
    ordered = sorted(batches, key=lambda batch: (batch.deadline, batch.id))
    demand = itertools.accumulate(batch.open for batch in ordered)
    dedicated = itertools.accumulate(batch.dedicated + batch.running_dedicated for batch in ordered)
    return list(zip(ordered, demand, dedicated, strict=True))


@given(_batches, _capacities, _starts)
def test_plan_uses_fewest_replicas_that_hold_deadlines(
    batches: list[OpenBatch], capacity: Capacity, starts: list[float]
) -> None:
    plan = plan_tick(batches, NOW, capacity, starts)

    def holds(on: int, sooner: float = 0.0) -> bool:
        earlier = [
            (replace(batch, deadline=batch.deadline - timedelta(seconds=sooner)), demand)
            for batch, demand, _ in _prefixes(batches)
        ]
        now, _ = _starts_of(capacity, starts, on)
        return all(
            demand <= _requests_until(capacity, now, batch) + 1e-6 for batch, demand in earlier
        )

    assert holds(plan.replicas) or plan.replicas == capacity.replicas
    if plan.replicas > 0:
        # One replica fewer would break a deadline, or be wanted again within its own start.
        is_warm = plan.replicas <= len(starts)
        sooner = capacity.cold_start + 1e-3 if is_warm else 1e-3
        assert not holds(plan.replicas - 1, sooner)


@given(_batches, _capacities, _starts)
def test_plan_moves_no_request_without_need(
    batches: list[OpenBatch], capacity: Capacity, starts: list[float]
) -> None:
    plan = plan_tick(batches, NOW, capacity, starts)
    after = _apply(batches, plan)
    assert all(min(batch.spot, batch.running_spot, batch.dedicated) >= 0 for batch in after)
    starts_now, starts_later = _starts_of(capacity, starts, plan.replicas)
    until_tick = sum(max(capacity.tick - start, 0.0) for start in starts_now) * capacity.line_rate
    busy = until_tick + 2 * plan.replicas * capacity.in_flight
    total = sum(batch.dedicated + batch.running_dedicated for batch in after)
    places = plan.replicas * capacity.in_flight

    def required(batch: OpenBatch, demand: int) -> float:
        missing = demand - _requests_until(capacity, starts_later, batch)
        return min(missing + places, busy) if missing > 1e-6 else 0.0

    movable = sum(batch.spot for batch in after)
    for batch, demand, dedicated in _prefixes(after):
        # The requests left on spot can still run in time after the next tick, whatever spot does.
        short = required(batch, demand) - dedicated
        up_to_batch = [
            other for other in after if (other.deadline, other.id) <= (batch.deadline, batch.id)
        ]
        assert short <= 1e-6 or sum(other.spot + other.running_spot for other in up_to_batch) == 0
    if plan.revocations:
        # Revoking one request fewer would break a deadline that no waiting request can help.
        last = max(
            (batch for batch in after if batch.id in {move.batch for move in plan.revocations}),
            key=lambda batch: (batch.deadline, batch.id),
        )
        assert any(
            dedicated - 1 < required(batch, demand) + 1e-6
            for batch, demand, dedicated in _prefixes(after)
            if (batch.deadline, batch.id) >= (last.deadline, last.id)
        )
        assert all(
            other.spot == 0
            for other in after
            if (other.deadline, other.id) <= (last.deadline, last.id)
        )
    elif plan.escalations:
        # One request fewer would leave a replica idle before the next tick, or break a deadline.
        assert total - 1 < busy + 1 or any(
            dedicated - 1 < required(batch, demand) + 1e-6
            for batch, demand, dedicated in _prefixes(after)
        )
    if plan.returns and movable:
        assert (
            total >= min(busy, sum(batch.open for batch in after)) - 1e-6
            or total == sum(batch.running_dedicated for batch in after)
            or total >= busy - 1
        )


@given(_batches, _capacities, _starts)
def test_repeated_tick_changes_nothing(
    batches: list[OpenBatch], capacity: Capacity, starts: list[float]
) -> None:
    first = plan_tick(batches, NOW, capacity, starts)
    known = sorted(starts)[: first.replicas]
    starts_again = known + [capacity.cold_start] * (first.replicas - len(known))
    again = plan_tick(_apply(batches, first), NOW, capacity, starts_again)
    assert (again.escalations, again.returns, again.revocations) == ((), (), ())
    assert (again.replicas, again.at_risk) == (first.replicas, first.at_risk)


@given(_batches, _capacities, _starts)
def test_batches_at_risk_are_those_all_replicas_cannot_finish(
    batches: list[OpenBatch], capacity: Capacity, starts: list[float]
) -> None:
    at_risk = plan_tick(batches, NOW, capacity, starts).at_risk
    now, _ = _starts_of(capacity, starts, capacity.replicas)
    whole_time = replace(capacity, in_flight=0)
    for batch, demand, _dedicated in _prefixes(batches):
        feasible = _requests_until(whole_time, now, batch)
        if abs(demand - feasible) > 1e-6:
            assert (batch.id in at_risk) == (demand > feasible)

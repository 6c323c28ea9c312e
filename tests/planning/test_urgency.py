"""The order of a tenant's batches on spot, and the deadlines where priorities stop counting."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.ids import BatchId, TenantId
from lowtide.planning.demand import Capacity
from lowtide.planning.escalation import OpenBatch, plan_tick
from lowtide.planning.reasons import Reason
from lowtide.planning.urgency import changed_barriers, own_order, spot_urgency

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B = (TenantId(uuid.UUID(int=number)) for number in (1, 2))


@dataclass(frozen=True)
class Waiting:
    left: float
    priority: int = 0
    barrier: float = math.inf
    at_risk: bool = False


HOURS = 3600.0
LATER = Waiting(20 * HOURS, priority=5)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        pytest.param(
            [Waiting(2 * HOURS), Waiting(20 * HOURS)], [(2, 0), (3, 1)], id="no priority"
        ),
        pytest.param([Waiting(2 * HOURS), LATER], [(3, 1), (3, 0)], id="both hold"),
        pytest.param([Waiting(20 * HOURS, priority=-1), Waiting(21 * HOURS)],
                     [(3, 1), (3, 0)], id="a negative one waits for none"),
        pytest.param([Waiting(2 * HOURS, barrier=2 * HOURS), LATER],
                     [(2, 0), (3, 1)], id="tight"),
        pytest.param([Waiting(2 * HOURS, barrier=3 * HOURS), LATER],
                     [(2, 0), (3, 1)], id="due before another tight deadline"),
        pytest.param([Waiting(2 * HOURS, barrier=21 * HOURS),
                      replace(LATER, barrier=21 * HOURS)],
                     [(3, 1), (3, 0)], id="both due before a tight deadline"),
        pytest.param([Waiting(30 * HOURS, barrier=30 * HOURS),
                      replace(LATER, barrier=30 * HOURS)],
                     [(3, 1), (4, 0)], id="a tight one comes before later ones only"),
        pytest.param([Waiting(2 * HOURS, at_risk=True), LATER], [(0, 0), (3, 1)], id="at risk"),
        pytest.param([Waiting(900.0), LATER], [(0, 0), (3, 1)], id="within 15 minutes"),
        pytest.param([Waiting(900.1), LATER], [(3, 1), (3, 0)], id="over 15 minutes"),
    ],
)  # fmt: skip
def test_order_of_a_tenants_batches(
    batches: list[Waiting], expected: list[tuple[float, int]]
) -> None:
    order = own_order(batches)
    assert [(level, batches.index(each)) for level, each in order] == expected


WAITING = st.builds(
    Waiting,
    left=st.floats(-100, 100_000),
    priority=st.integers(-10, 10),
    at_risk=st.booleans(),
)


@given(batches=st.lists(WAITING, max_size=12), tight=st.lists(st.booleans(), min_size=12))
def test_priorities_delay_own_work_alone_and_none_before_a_barrier(
    batches: list[Waiting], tight: list[bool]
) -> None:
    barriers = sorted(each.left for each, is_tight in zip(batches, tight, strict=False) if is_tight)
    batches = [
        replace(each, barrier=min((b for b in barriers if b >= each.left), default=math.inf))
        for each in batches
    ]
    order = own_order(batches)
    assert sorted(map(repr, batches)) == sorted(repr(each) for _, each in order)
    for level, each in order:
        own = spot_urgency(each.left, at_risk=each.at_risk)
        # To other tenants, no batch is more urgent than by its deadline; tight ones are as urgent.
        assert level >= own
        if each.barrier == each.left or each.at_risk:
            assert level == own
    ordinary = [each for _, each in order if spot_urgency(each.left, at_risk=each.at_risk) > 0]
    for barrier in barriers:
        is_due = [each.left <= barrier for each in ordinary]
        assert is_due == sorted(is_due, reverse=True)
    for first, second in pairwise(ordinary):
        assert first.barrier < second.barrier or first.priority >= second.priority


@given(batches=st.lists(WAITING, max_size=12))
def test_without_priorities_deadlines_alone_count(batches: list[Waiting]) -> None:
    equal = [replace(each, priority=0) for each in batches]
    levels = [(spot_urgency(each.left, at_risk=each.at_risk), each) for each in equal]
    expected = sorted(levels, key=lambda pair: (pair[0], pair[1].left))
    assert [(level, each.left) for level, each in own_order(equal)] == [
        (level, each.left) for level, each in expected
    ]


def _batch(
    number: int, due: float, lines: int, tenant: TenantId = A, priority: int = 0
) -> OpenBatch:
    deadline = NOW + timedelta(seconds=due)
    id_ = BatchId(uuid.UUID(int=number))
    return OpenBatch(id_, deadline, lines, tenant=tenant, priority=priority)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 90_000), st.integers(1, 4000)), min_size=1, max_size=8),
    replicas=st.integers(0, 5),
    rate=st.sampled_from([0.05, 0.2, 1.0]),
    cold_start=st.sampled_from([0.0, 180.0]),
    tick=st.sampled_from([10.0, 300.0]),
    present=st.integers(0, 5),
)
def test_deadlines_that_are_not_tight_need_nothing_before_the_next_tick(
    sizes: list[tuple[int, int]],
    replicas: int,
    rate: float,
    cold_start: float,
    tick: float,
    present: int,
) -> None:
    capacity = Capacity(rate, replicas, cold_start, 30.0, tick, in_flight=2)
    batches = [_batch(number, due, lines) for number, (due, lines) in enumerate(sizes)]
    starts = [0.0] * min(present, replicas)
    plan = plan_tick(batches, NOW, capacity, starts)
    holding = {batch.id for batch in batches if batch.deadline not in plan.tight}
    after_idle_tick = plan_tick(batches, NOW + timedelta(seconds=tick), capacity)
    assert not holding & (plan.at_risk | after_idle_tick.at_risk)
    if not plan.tight:
        assert plan_tick(batches, NOW, capacity).replicas == 0
        assert all(move.reason is Reason.DEDICATED_IDLE for move in plan.escalations)


@pytest.mark.parametrize(
    ("seconds", "is_tight"),
    [
        # 100 requests at 1 per second: 100 s, twice, after the tick, a cold start and the margin.
        pytest.param(241.0, False, id="holds"),
        pytest.param(239.0, True, id="tight"),
    ],
)
def test_headroom_is_twice_the_work_from_the_next_tick_on(seconds: float, is_tight: bool) -> None:
    capacity = Capacity(1.0, 1, cold_start=20.0, margin=9.0, tick=10.0)
    plan = plan_tick([_batch(1, seconds, 100)], NOW, capacity, [0.0])
    assert bool(plan.tight) is is_tight
    assert not plan.at_risk


def test_fleet_without_dedicated_promises_nothing() -> None:
    capacity = Capacity(1.0, 0, cold_start=20.0, margin=9.0, tick=10.0)
    batch = _batch(1, 1e6, 1)
    assert plan_tick([batch], NOW, capacity).tight == [batch.deadline]


def test_barrier_is_the_first_tight_deadline_of_any_fleet() -> None:
    early, middle, late = (_batch(number, 100 * number, 1) for number in (1, 2, 3))
    urgent = _batch(4, 150, 1, priority=1)
    other = _batch(5, 150, 1, B)
    batches = [early, middle, late, urgent, other]
    assert changed_barriers([(batches, [])]) == {}
    tight = changed_barriers([(batches, [middle.deadline]), ([late, urgent], [late.deadline])])
    assert tight == {
        early.id: middle.deadline,
        middle.id: middle.deadline,
        late.id: late.deadline,
        urgent.id: middle.deadline,
    }
    marked = [replace(each, barrier=tight.get(each.id)) for each in batches]
    assert (
        changed_barriers([(marked, [middle.deadline]), ([marked[2], marked[3]], [late.deadline])])
        == {}
    )
    without_urgent = [each for each in marked if each.id != urgent.id]
    assert changed_barriers([(without_urgent, [middle.deadline])]) == dict.fromkeys(
        (early.id, middle.id, late.id)
    )

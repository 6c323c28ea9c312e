"""Fair shares: the most urgent class first, then tenants by weight, as they come and go."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.ids import BatchId, TenantId
from lowtide.core.pools import Pool
from lowtide.queue.fairness import FairShare, Lane, Share, ranked, without

A, B, C = (TenantId(UUID(int=number)) for number in (1, 2, 3))


def lane(tenant: TenantId, number: int, left: float = 50_000.0, **changes: Any) -> Lane:
    """Return a lane of batch `number`."""
    whole: dict[str, Any] = {"batch": BatchId(UUID(int=number)), "tenant": tenant, "left": left}
    return Lane(**(whole | changes))


def serve(shares: FairShare, lanes: list[Lane], requests: int) -> Counter[TenantId]:
    """Serve each tenant its whole planned share."""
    served: Counter[TenantId] = Counter()
    for share in shares.plan(lanes, requests):
        shares.served(share, share.lines)
        served[share.tenant] += share.lines
    return served


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        pytest.param(-10.0, 0.0, id="late"),
        pytest.param(0.0, 0.0, id="at the deadline"),
        pytest.param(900.0, 0.0, id="15 min"),
        pytest.param(900.1, 1.0, id="over 15 min"),
        pytest.param(3600.0, 1.0, id="1 h"),
        pytest.param(3600.1, 2.0, id="over 1 h"),
        pytest.param(14_400.0, 2.0, id="4 h"),
        pytest.param(14_400.1, 3.0, id="over 4 h"),
        pytest.param(86_400.0, 3.0, id="24 h"),
        pytest.param(86_400.1, 4.0, id="over 24 h"),
    ],
)
def test_spot_ranks_by_urgency_class_and_dedicated_by_deadline(
    left: float, expected: float
) -> None:
    holds, risky = lane(A, 1, left), lane(A, 1, left, at_risk=True)
    assert ranked([holds], Pool.SPOT) == [(expected, holds)]
    assert ranked([risky], Pool.SPOT) == [(0.0, risky)]
    assert ranked([holds], Pool.DEDICATED) == [(left, holds)]
    assert ranked([risky], Pool.DEDICATED) == [(left, risky)]


def test_empty_queue_gets_no_shares() -> None:
    assert FairShare(Pool.SPOT).plan([], 10) == []


def test_tenant_lanes_are_sorted_by_deadline() -> None:
    late, early, middle = lane(A, 1, 14_000), lane(A, 2, 4_000), lane(A, 3, 5_000)
    assert FairShare(Pool.SPOT).plan([late, early, middle], 7) == [
        Share(A, 7, (early, middle, late))
    ]


def test_lanes_with_equal_deadlines_are_sorted_by_batch() -> None:
    lanes = [lane(A, number) for number in (3, 1, 2)]
    (share,) = FairShare(Pool.SPOT).plan(lanes, 7)
    assert [each.batch.int for each in share.lanes] == [1, 2, 3]


def test_only_most_urgent_class_is_served() -> None:
    urgent, patient = lane(A, 1, 600), lane(B, 2, 901)
    shares = FairShare(Pool.SPOT)
    assert shares.plan([patient, urgent], 7) == [Share(A, 7, (urgent,))]
    assert shares.plan([patient], 7) == [Share(B, 7, (patient,))]


def test_batch_at_risk_joins_most_urgent_class() -> None:
    risky, soon, far = lane(A, 1, 86_000, at_risk=True), lane(B, 2, 800), lane(C, 3, 1000)
    shares = FairShare(Pool.SPOT).plan([risky, soon, far], 10)
    assert {share.tenant: share.lines for share in shares} == {A: 5, B: 5}


def test_dedicated_serves_strictly_by_deadline() -> None:
    lanes = [lane(A, 1, 100, weight=1), lane(B, 2, 99.5, weight=100), lane(C, 3, 5, at_risk=True)]
    shares = FairShare(Pool.DEDICATED)
    served = []
    while lanes:
        (share,) = shares.plan(lanes, 10)
        served.append(share.tenant)
        lanes = without(lanes, share.lanes)
    assert served == [C, B, A]


@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=40),
    weights=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    workers=st.integers(1, 6),
)
def test_shares_follow_weights_for_any_claim_sizes(
    sizes: list[int], weights: tuple[int, int, int], workers: int
) -> None:
    tenants = dict(zip((A, B, C), weights, strict=True))
    lanes = [lane(tenant, tenant.int, weight=weight) for tenant, weight in tenants.items()]
    shares = [FairShare(Pool.SPOT) for _ in range(workers)]
    total: Counter[TenantId] = Counter()
    for number, size in enumerate(sizes):
        total += serve(shares[number % workers], lanes, size)
    # Start-time fair queueing: the tags of two tenants with work differ by less than one turn of
    # either, at every worker.
    for (tenant, weight), (other_tenant, other_weight) in permutations(tenants.items(), 2):
        gap = total[tenant] / weight - total[other_tenant] / other_weight
        assert gap <= workers * (1 / weight + 1 / other_weight) + 1e-6
    assert total.total() == sum(sizes)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 199, 500])
def test_weights_of_three_and_one_give_three_quarters(size: int, workers: int) -> None:
    lanes = [lane(A, 1, weight=3), lane(B, 2, weight=1)]
    shares = [FairShare(Pool.SPOT) for _ in range(workers)]
    total: Counter[TenantId] = Counter()
    turns = 8000 // size
    for number in range(turns):
        total += serve(shares[number % workers], lanes, size)
    assert total[A] == pytest.approx(total.total() * 3 / 4, abs=2 * workers)


@given(size=st.integers(1, 500), alone=st.integers(1, 50))
def test_absent_tenant_saves_up_no_turns(size: int, alone: int) -> None:
    shares = FairShare(Pool.SPOT)
    mine, other = lane(A, 1), lane(B, 2)
    serve(shares, [mine, other], size)
    for _ in range(alone):
        assert serve(shares, [other], size) == {B: size}
    served: Counter[TenantId] = Counter()
    for _ in range(4):
        served += serve(shares, [mine, other], size)
    assert abs(served[A] - served[B]) <= 1


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    absences=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_returning_tenant_gains_at_most_one_turn_per_arrival(
    sizes: list[int], absences: list[bool]
) -> None:
    shares = FairShare(Pool.SPOT)
    steady, intermittent = lane(A, 1), lane(B, 2)
    served: Counter[TenantId] = Counter()
    arrivals, present = 0, False
    for size, absent in zip(sizes, absences, strict=False):
        arrivals += not absent and not present
        present = not absent
        served += serve(shares, [steady] if absent else [steady, intermittent], size)
    assert served[B] <= served[A] + 1 + arrivals


def test_unfilled_share_counts_only_served_requests() -> None:
    shares = FairShare(Pool.SPOT)
    lanes = [lane(A, 1), lane(B, 2)]
    first, second = shares.plan(lanes, 100)
    shares.served(first, 10)
    shares.served(second, 50)
    # A was served 40 requests fewer and is still present: it catches up first.
    assert serve(shares, lanes, 60) == {A: 50, B: 10}


def test_without_keeps_lanes_of_other_batches() -> None:
    lanes = [lane(A, 1), lane(B, 2), lane(A, 3)]
    assert without(lanes, lanes[:1]) == lanes[1:]
    assert without(lanes, []) == lanes

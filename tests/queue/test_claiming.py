"""Claims: fair between tenants, within their limits, and lost by no failure."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest
from pg8000 import dbapi

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId, TenantId
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from lowtide.database.prepared import PreparingConnection
from lowtide.queue import claiming
from lowtide.queue.claiming import Claiming
from tests.loads import fill, tenant_with
from tests.worlds import Running, World, done, gate, numbers, together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.queue.claims import Claim

BIG = 50_000


@pytest.fixture
def always_loads_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Advance the clock so far between claims that each claim loads the lanes."""
    clock = count(0, 100)
    monkeypatch.setattr(claiming, "monotonic", lambda: float(next(clock)))


def _of(claims: Sequence[Claim], batch: BatchId) -> list[Claim]:
    return [claim for claim in claims if claim.batch == batch]


@pytest.mark.usefixtures("always_loads_lanes")
@pytest.mark.parametrize("size", [1, 7, 20, 200])
@pytest.mark.parametrize("workers", [1, 3])
def test_small_batch_overtakes_huge_batch(world: World, size: int, workers: int) -> None:
    fill(world, BIG)
    leases = [world.queue.open_lease(Pool.SPOT, "w") for _ in range(workers)]
    for lease in leases:
        world.queue.claim(lease, Pool.SPOT, size)
    small = fill(world, 10, tenant=world.tenant("small"))
    others = claimed = 0
    for number in count():
        claims = world.queue.claim(leases[number % workers], Pool.SPOT, size)
        of_small = len(_of(claims, small))
        claimed += of_small
        if claimed == 10:
            break
        others += len(claims) - of_small
    # Equal weights allow as many requests of the other batch, plus one claim per worker.
    assert others <= 10 + workers * size


def test_new_batch_is_found_after_one_second_even_if_queries_are_slow(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def slow_clock() -> float:
        now[0] += 60.0
        return now[0]

    fill(world, 100)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    monkeypatch.setattr(claiming, "monotonic", slow_clock)
    world.queue.claim(lease, Pool.SPOT, 10)
    loaded_at = now[0]
    small = fill(world, 5, tenant=world.tenant("small"))
    monkeypatch.setattr(claiming, "monotonic", lambda: loaded_at + 0.5)
    assert _of(world.queue.claim(lease, Pool.SPOT, 10), small) == []
    monkeypatch.setattr(claiming, "monotonic", lambda: loaded_at + 1.0)
    assert numbers(_of(world.queue.claim(lease, Pool.SPOT, 10), small)) == [1, 2, 3, 4, 5]


def test_four_workers_share_three_to_one_by_weight(world: World) -> None:
    """10,000 requests are claimed in claims of 1 to 200."""
    heavy = fill(world, 12_000, tenant=tenant_with(world, "heavy", weight=3))
    light = fill(world, 6_000, tenant=tenant_with(world, "light", weight=1))
    engines = [world.own_engine("worker") for _ in range(4)]

    def work(number: int) -> Counter[BatchId]:
        sizes = random.Random(number)  # noqa: S311
        queue = world.queue_on(engines[number])
        lease = queue.open_lease(Pool.SPOT, "w")
        claimed: Counter[BatchId] = Counter()
        while claimed.total() < 2500:
            size = min(sizes.randint(1, 200), 2500 - claimed.total())
            claims = queue.claim(lease, Pool.SPOT, size)
            assert len(claims) == size
            claimed.update(claim.batch for claim in claims)
        return claimed

    counts = together(*[partial(work, number) for number in range(4)])
    total: Counter[BatchId] = sum(counts, Counter())
    assert total[heavy] / total[light] == pytest.approx(3, rel=0.05)
    assert total.total() == 10_000


def test_unfilled_share_goes_to_other_tenants(world: World) -> None:
    few = fill(world, 3, tenant=world.tenant("few"))
    many = fill(world, 100, tenant=world.tenant("many"))
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 50)
    assert (len(_of(claims, few)), len(_of(claims, many))) == (3, 47)


def test_less_urgent_requests_fill_rest_of_claim(world: World) -> None:
    far = fill(world, 5, due_in=90_000)
    near = fill(world, 5, due_in=5_000)
    risky = fill(world, 5, due_in=80_000, tenant=world.tenant("other"))
    world.run("UPDATE batches SET at_risk = true WHERE id = :id", id=risky)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 12)
    assert [(claim.batch, claim.line) for claim in claims] == [
        *[(risky, line) for line in range(1, 6)],
        *[(near, line) for line in range(1, 6)],
        *[(far, line) for line in range(1, 3)],
    ]


def _limited(world: World, name: str, limit: int, requests: int = 200) -> tuple[TenantId, BatchId]:
    tenant = tenant_with(world, name, max_running_lines=limit)
    return tenant, fill(world, requests, tenant=tenant)


def test_running_requests_never_exceed_tenant_limit(world: World) -> None:
    """Workers claim and settle concurrently, and count running requests after every claim."""
    limit, rounds = 25, 12
    tenant, _ = _limited(world, "limited", limit, requests=2000)
    fill(world, 2000, tenant=world.tenant("free"))

    def work(number: int) -> int:
        sizes = random.Random(number)  # noqa: S311
        queue = world.queue_on(world.own_engine("worker"))
        lease = queue.open_lease(Pool.SPOT, "w")
        peak = 0
        for _ in range(rounds):
            claims = queue.claim(lease, Pool.SPOT, sizes.randint(1, 40))
            running = "SELECT count(*) FROM claims WHERE tenant_id = :tenant"
            peak = max(peak, world.value(running, tenant=tenant))
            queue.settle(lease, [done(claim) for claim in claims], [])
        return peak

    assert 0 < max(together(*[partial(work, number) for number in range(6)])) <= limit


@pytest.mark.parametrize("limit", [1, 10, 25])
def test_tenant_limit_is_used_up_and_others_fill_claims(world: World, limit: int) -> None:
    _, limited = _limited(world, "limited", limit)
    free = fill(world, 200, tenant=world.tenant("free"))

    def work() -> Counter[BatchId]:
        queue = world.queue_on(world.own_engine("worker"))
        claims = queue.claim(queue.open_lease(Pool.SPOT, "w"), Pool.SPOT, 20)
        return Counter(claim.batch for claim in claims)

    claimed: Counter[BatchId] = sum(together(*[work] * 6), Counter())
    # A claim that meets the lock of another one skips the tenant.
    assert claimed[limited] <= limit
    assert claimed == {limited: claimed[limited], free: 120 - claimed[limited]}
    last = world.queue.claim(world.queue.open_lease(Pool.SPOT, "w"), Pool.SPOT, 60)
    assert len(_of(last, limited)) + claimed[limited] == limit


def test_limited_tenants_cause_no_deadlock_between_workers(world: World) -> None:
    """One worker locks A and then B, the other B and then A; both tenants are at their limit."""
    (a, _), (b, _) = sorted(_limited(world, name, 1) for name in ("one", "two"))
    full = world.queue.open_lease(Pool.SPOT, "full")
    assert len(world.queue.claim(full, Pool.SPOT, 5)) == 2
    slow = world.own_engine("worker")
    first, second = world.queue_on(slow), world.queue_on(world.own_engine("worker"))
    leases = [queue.open_lease(Pool.SPOT, "w") for queue in (first, second)]
    # The second has served A before, so that it is B's turn.
    second._claiming[leases[1]] = served = Claiming(
        second._engine, FleetPool(DEFAULT_FLEET, Pool.SPOT)
    )
    served._turns._tags = {a: 1.0, b: 0.0}
    with gate(slow, before="DELETE FROM queued_runs") as stopped:
        claim = Running(lambda: first.claim(leases[0], Pool.SPOT, 1))
        stopped.wait()
        assert second.claim(leases[1], Pool.SPOT, 1) == []
        stopped.opened.set()
        assert claim.result() == []


def _break_once(monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """Break the connection once, before or after the server commits."""
    commit = PreparingConnection.commit

    def broken(self: PreparingConnection) -> None:
        monkeypatch.setattr(PreparingConnection, "commit", commit)
        if after:
            commit(self)
        self._usock.close()
        raise dbapi.InterfaceError("network error")

    monkeypatch.setattr(PreparingConnection, "commit", broken)


@pytest.mark.parametrize("after", [True, False], ids=["committed", "not committed"])
def test_requests_of_unanswered_claim_are_claimed_again(
    world: World, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    """The lease stays alive, so no sweep would release them."""
    batch = fill(world, 9)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    earlier = world.queue.claim(lease, Pool.SPOT, 2)
    with monkeypatch.context() as patched:
        _break_once(patched, after=after)
        with pytest.raises(Unavailable):
            world.queue.claim(lease, Pool.SPOT, 3)
    assert world.lines("claims", batch) == ([1, 2, 3, 4, 5] if after else [1, 2])
    again = world.queue.claim(lease, Pool.SPOT, 3)
    assert numbers(again) == [3, 4, 5]
    remaining = world.queue.claim(lease, Pool.SPOT, 9)
    assert numbers(remaining) == [6, 7, 8, 9]
    settled = world.queue.settle(
        lease, [done(claim) for claim in [*earlier, *again, *remaining]], []
    )
    assert (settled.finished, len(settled.drained)) == (9, 1)


def test_unanswered_claim_takes_no_requests_of_other_workers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world, 6)
    mine, other = (world.queue.open_lease(Pool.SPOT, "w") for _ in range(2))
    with monkeypatch.context() as patched:
        _break_once(patched, after=False)
        with pytest.raises(Unavailable):
            world.queue.claim(mine, Pool.SPOT, 3)
    assert numbers(world.queue.claim(other, Pool.SPOT, 2)) == [1, 2]
    assert numbers(world.queue.claim(mine, Pool.SPOT, 3)) == [3, 4, 5]


def test_claim_follows_tenant_weight(world: World) -> None:
    fill(world, 100, tenant=DEFAULT_TENANT)
    tenant = tenant_with(world, "heavy", weight=4)
    heavy = fill(world, 100, tenant=tenant)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    assert len(_of(world.queue.claim(lease, Pool.SPOT, 50), heavy)) == 40

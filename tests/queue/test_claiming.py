"""What claims are given: fair between tenants, within their limits, lost by no failure."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest
from pg8000 import dbapi

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId, LeaseId, TenantId
from lowtide.core.pools import Pool
from lowtide.database.prepared import PreparingConnection
from lowtide.queue import claiming
from lowtide.queue.claiming import Claiming
from lowtide.queue.claims import Claim, Returned
from tests.loads import fill, tenant_with
from tests.worlds import Running, World, done, gate, numbers, together

if TYPE_CHECKING:
    from collections.abc import Sequence

BIG = 50_000


@pytest.fixture
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so much time pass between two claims that each looks for batches."""
    clock = count(0, 100)
    monkeypatch.setattr(claiming, "monotonic", lambda: float(next(clock)))


def _of(claims: Sequence[Claim], batch: BatchId) -> list[Claim]:
    return [claim for claim in claims if claim.batch == batch]


def _give_back(world: World, lease: LeaseId, claims: Sequence[Claim]) -> None:
    world.queue.settle(lease, [], [Returned(each.batch, each.line, "") for each in claims])


@pytest.mark.usefixtures("looks_always")
@pytest.mark.parametrize("size", [1, 7, 20, 200])
@pytest.mark.parametrize("workers", [1, 3])
def test_small_batch_overtakes_huge_batch(world: World, size: int, workers: int) -> None:
    fill(world, BIG)
    leases = [world.queue.open_lease(Pool.SPOT, "w") for _ in range(workers)]
    for lease in leases:
        world.queue.claim(lease, Pool.SPOT, size)
    small = fill(world, 10, tenant=world.tenant("small"))
    others = taken = 0
    for number in count():
        claims = world.queue.claim(leases[number % workers], Pool.SPOT, size)
        mine = len(_of(claims, small))
        taken += mine
        if taken == 10:
            break
        others += len(claims) - mine
    # As many as itself, by its equal weight, and one set a worker.
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
    looked = now[0]
    small = fill(world, 5, tenant=world.tenant("small"))
    monkeypatch.setattr(claiming, "monotonic", lambda: looked + 0.5)
    assert _of(world.queue.claim(lease, Pool.SPOT, 10), small) == []
    monkeypatch.setattr(claiming, "monotonic", lambda: looked + 1.0)
    assert numbers(_of(world.queue.claim(lease, Pool.SPOT, 10), small)) == [1, 2, 3, 4, 5]


def test_four_workers_share_three_to_one_by_weight(world: World) -> None:
    """10,000 lines in claims of 1 to 200."""
    heavy = fill(world, 12_000, tenant=tenant_with(world, "heavy", weight=3))
    light = fill(world, 6_000, tenant=tenant_with(world, "light", weight=1))
    engines = [world.own_engine("worker") for _ in range(4)]

    def work(number: int) -> Counter[BatchId]:
        sizes = random.Random(number)  # noqa: S311
        queue = world.queue_on(engines[number])
        lease = queue.open_lease(Pool.SPOT, "w")
        got: Counter[BatchId] = Counter()
        while got.total() < 2500:
            size = min(sizes.randint(1, 200), 2500 - got.total())
            claims = queue.claim(lease, Pool.SPOT, size)
            assert len(claims) == size
            got.update(claim.batch for claim in claims)
        return got

    each = together(*[partial(work, number) for number in range(4)])
    total: Counter[BatchId] = sum(each, Counter())
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


def _limited(world: World, name: str, limit: int, lines: int = 200) -> tuple[TenantId, BatchId]:
    tenant = tenant_with(world, name, max_running=limit)
    return tenant, fill(world, lines, tenant=tenant)


def test_running_requests_never_exceed_tenant_limit(world: World) -> None:
    """Workers claim and settle at once, and each looks at what runs after every claim."""
    limit, rounds = 25, 12
    tenant, _ = _limited(world, "limited", limit, lines=2000)
    fill(world, 2000, tenant=world.tenant("free"))

    def work(number: int) -> int:
        sizes = random.Random(number)  # noqa: S311
        queue = world.queue_on(world.own_engine("worker"))
        lease = queue.open_lease(Pool.SPOT, "w")
        most = 0
        for _ in range(rounds):
            claims = queue.claim(lease, Pool.SPOT, sizes.randint(1, 40))
            running = "SELECT count(*) FROM claims WHERE tenant_id = :tenant"
            most = max(most, world.value(running, tenant=tenant))
            queue.settle(lease, [done(claim) for claim in claims], [])
        return most

    assert 0 < max(together(*[partial(work, number) for number in range(6)])) <= limit


@pytest.mark.parametrize("limit", [1, 10, 25])
def test_tenant_limit_is_used_up_and_others_fill_claims(world: World, limit: int) -> None:
    _, limited = _limited(world, "limited", limit)
    free = fill(world, 200, tenant=world.tenant("free"))

    def work() -> Counter[BatchId]:
        queue = world.queue_on(world.own_engine("worker"))
        claims = queue.claim(queue.open_lease(Pool.SPOT, "w"), Pool.SPOT, 20)
        return Counter(claim.batch for claim in claims)

    got: Counter[BatchId] = sum(together(*[work] * 6), Counter())
    # Who meets a lock that another holds leaves the tenant's lines to it.
    assert got[limited] <= limit
    assert got == {limited: got[limited], free: 120 - got[limited]}
    last = world.queue.claim(world.queue.open_lease(Pool.SPOT, "w"), Pool.SPOT, 60)
    assert len(_of(last, limited)) + got[limited] == limit


def test_limited_tenants_cause_no_deadlock_between_workers(world: World) -> None:
    """One worker has locked A and goes on to B, the other B and then A; both are full."""
    (a, _), (b, _) = sorted(_limited(world, name, 1) for name in ("one", "two"))
    full = world.queue.open_lease(Pool.SPOT, "full")
    assert len(world.queue.claim(full, Pool.SPOT, 5)) == 2
    slow = world.own_engine("worker")
    first, second = world.queue_on(slow), world.queue_on(world.own_engine("worker"))
    leases = [queue.open_lease(Pool.SPOT, "w") for queue in (first, second)]
    # The second has served A before, so that it is B's turn.
    second._claiming[leases[1]] = served = Claiming(second._engine, Pool.SPOT)
    served._turns._tags = {a: 1.0, b: 0.0}
    with gate(slow, before="DELETE FROM queue") as held:
        one = Running(lambda: first.claim(leases[0], Pool.SPOT, 1))
        held.wait()
        assert second.claim(leases[1], Pool.SPOT, 1) == []
        held.opened.set()
        assert one.result() == []


def _break_once(monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """Lose the connection before or after the server commits, once."""
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
    """The lease lives on, and so nobody else would ever take them out of its hands."""
    batch = fill(world, 9)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    held = world.queue.claim(lease, Pool.SPOT, 2)
    with monkeypatch.context() as patched:
        _break_once(patched, after=after)
        with pytest.raises(Unavailable):
            world.queue.claim(lease, Pool.SPOT, 3)
    assert world.lines("claims", batch) == ([1, 2, 3, 4, 5] if after else [1, 2])
    again = world.queue.claim(lease, Pool.SPOT, 3)
    assert numbers(again) == [3, 4, 5]
    rest = world.queue.claim(lease, Pool.SPOT, 9)
    assert numbers(rest) == [6, 7, 8, 9]
    settled = world.queue.settle(lease, [done(claim) for claim in [*held, *again, *rest]], [])
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

"""Batches drain exactly once, by concurrent settlements, releases, sweeps and cancellations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import Conflict
from lowtide.core.pools import Pool
from lowtide.queue.claims import Claim, Returned
from tests.worlds import Running, World, done, gate, together

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.core.ids import BatchId, LeaseId


def _interrupted(claim: Claim) -> Returned:
    return Returned(claim.batch, claim.line, "gone", interrupted=True)


def _claim_each(world: World, requests: int) -> list[tuple[LeaseId, Claim]]:
    """Claim requests one by one, each under its own lease."""
    claims = []
    for _ in range(requests):
        lease = world.queue.open_lease(Pool.SPOT, "w")
        (claim,) = world.queue.claim(lease, Pool.SPOT, 1)
        claims.append((lease, claim))
    return claims


def _assert_empty(world: World, batch: BatchId) -> None:
    assert world.lines("queue", batch) == []
    assert world.lines("claims", batch) == []


@pytest.mark.parametrize("workers", [2, 4])
def test_concurrent_last_settlements_drain_batch_once(world: World, workers: int) -> None:
    for _ in range(15):
        batch = world.batch(workers)
        claims = _claim_each(world, workers)
        settled = together(
            *[
                lambda lease=lease, claim=claim: world.queue.settle(lease, [done(claim)], [])
                for lease, claim in claims
            ]
        )
        assert sum(len(each.drained) for each in settled) == 1
        assert world.drained(batch) == 1
        row = world.row(batch)
        assert (row.status, row.tallied_completed) == ("finalizing", workers)
        assert row.finalizing_at == row.drained_at is not None
        _assert_empty(world, batch)


def test_last_settlement_waits_for_previous_one(world: World) -> None:
    batch = world.batch(2)
    (first, a), (second, b) = _claim_each(world, 2)
    slow = world.own_engine("worker")
    with gate(slow, before="COMMIT") as stopped:
        earlier = Running(lambda: world.queue_on(slow).settle(first, [done(a)], []))
        stopped.wait()
        later = Running(lambda: world.queue.settle(second, [done(b)], []))
        world.blocked()
        stopped.opened.set()
        assert earlier.result().drained == ()
        assert len(later.result().drained) == 1
    assert world.drained(batch) == 1


def test_sweep_drains_batch_that_settlements_missed(world: World) -> None:
    """Request 2 is queued when the settlement of request 1 checks, and settled before it commits."""
    batch = world.batch(2)
    first = world.queue.open_lease(Pool.SPOT, "w")
    (a,) = world.queue.claim(first, Pool.SPOT, 1)
    slow = world.own_engine("worker")
    with gate(slow, before="COMMIT") as stopped:
        settlement = Running(lambda: world.queue_on(slow).settle(first, [done(a)], []))
        stopped.wait()
        second = world.queue.open_lease(Pool.SPOT, "w")
        (b,) = world.queue.claim(second, Pool.SPOT, 1)
        world.queue.settle(second, [done(b)], [])
        stopped.opened.set()
        settlement.result()
    world.sweep()
    world.sweep()
    assert world.drained(batch) == 1
    assert world.row(batch).status == "finalizing"


ENDS: dict[str, Callable[[World, BatchId], object]] = {
    "cancel": lambda world, batch: world.cancel(batch),
    "expire": lambda world, _: world.sweep(),
}


@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("round_", range(8))
def test_ending_batch_drains_once_among_concurrent_changes(
    world: World, end: str, round_: int
) -> None:
    batch = world.batch(30 + round_, due_in=-1)
    claims = _claim_each(world, 4)
    last = world.queue.open_lease(Pool.SPOT, "w")
    together(
        lambda: ENDS[end](world, batch),
        lambda: world.queue.settle(claims[0][0], [done(claims[0][1])], []),
        lambda: world.queue.settle(claims[1][0], [], [_interrupted(claims[1][1])]),
        lambda: world.queue.claim(last, Pool.SPOT, 20),
        lambda: world.queue.close_lease(claims[2][0]),
    )
    # The workers die now: sweeps alone must end the batch.
    for lease in (claims[3][0], last):
        world.expire_lease(lease)
    world.sweep(cancel_grace=0)
    world.sweep(cancel_grace=0)
    _assert_empty(world, batch)
    row = world.row(batch)
    assert row.drained_at is not None
    assert row.status == ("cancelling" if end == "cancel" else "in_progress")
    assert world.drained(batch) == 1
    assert row.tallied_completed == len(world.lines("results", batch)) <= 1


@pytest.mark.parametrize("end", list(ENDS))
def test_concurrent_releases_wait_only_for_batch_that_ends(world: World, end: str) -> None:
    """Several releases wait for the batch, and none of them blocks another."""
    batch = world.batch(8, due_in=-1)
    claims = _claim_each(world, 3)
    slow = world.own_engine("api" if end == "cancel" else "worker")
    other_world = World(world.database)
    other_world.batches._engine = slow
    other_world.ticks._engine = slow
    with gate(slow, before="DELETE FROM queued_runs") as ending:
        end_of_batch = Running(lambda: ENDS[end](other_world, batch))
        ending.wait()
        settlements = [
            Running(partial(world.queue.settle, lease, [], [_interrupted(claim)]))
            for lease, claim in claims
        ]
        world.blocked(len(claims))
        ending.opened.set()
        end_of_batch.result()
        settled = [settlement.result() for settlement in settlements]
    assert [each.returned for each in settled] == [1, 1, 1]
    _assert_empty(world, batch)
    assert world.drained(batch) == 1


def test_cancel_waits_for_release_in_progress(world: World) -> None:
    batch = world.batch(1)
    ((lease, claim),) = _claim_each(world, 1)
    slow = world.own_engine("worker")
    with gate(slow, before="COMMIT") as stopped:
        settlement = Running(lambda: world.queue_on(slow).settle(lease, [], [_interrupted(claim)]))
        stopped.wait()
        cancelled = Running(lambda: world.cancel(batch))
        world.blocked()
        stopped.opened.set()
        settlement.result()
        assert cancelled.result() is True
    _assert_empty(world, batch)
    assert world.drained(batch) == 1


def test_cancel_waits_for_claim_in_progress(world: World) -> None:
    batch = world.batch(2)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    slow = world.own_engine("worker")
    with gate(slow, before="COMMIT") as stopped:
        claimed = Running(lambda: world.queue_on(slow).claim(lease, Pool.SPOT, 2))
        stopped.wait()
        cancelled = Running(lambda: world.cancel(batch))
        world.blocked()
        stopped.opened.set()
        claims = claimed.result()
        assert cancelled.result() is False
    assert world.drained(batch) == 0
    world.queue.settle(lease, [done(claim) for claim in claims], [])
    assert world.drained(batch) == 1
    _assert_empty(world, batch)


@pytest.mark.parametrize("end", list(ENDS))
def test_request_being_settled_is_left_to_its_worker(world: World, end: str) -> None:
    batch = world.batch(3, due_in=-1)
    ((lease, claim),) = _claim_each(world, 1)
    slow = world.own_engine("worker")
    with gate(slow, before="WHERE CASE WHEN") as stopped:
        settlement = Running(lambda: world.queue_on(slow).settle(lease, [done(claim)], []))
        stopped.wait()
        ENDS[end](world, batch)
        if end == "cancel":
            world.sweep(cancel_grace=0)
        assert world.drained(batch) == 0
        stopped.opened.set()
        assert len(settlement.result().drained) == 1
    assert world.lines("results", batch) == [claim.line]
    assert world.drained(batch) == 1
    _assert_empty(world, batch)


def test_lease_is_not_reaped_while_it_claims(world: World) -> None:
    batch = world.batch(2)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    world.expire_lease(lease)
    slow = world.own_engine("worker")
    with gate(slow, before="COMMIT") as stopped:
        claimed = Running(lambda: world.queue_on(slow).claim(lease, Pool.SPOT, 2))
        stopped.wait()
        assert world.sweep() == 0
        stopped.opened.set()
        assert len(claimed.result()) == 2
    assert world.sweep() == 2
    assert world.lines("queue", batch) == [1, 2]


def test_lease_being_reaped_claims_nothing(world: World) -> None:
    batch = world.batch(2)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    world.expire_lease(lease)
    slow = world.own_engine("worker")
    reaper = World(world.database)
    reaper.ticks._engine = slow
    with gate(slow, before="WITH lost AS") as stopped:
        reaped = Running(reaper.sweep)
        stopped.wait()
        claimed = Running(lambda: world.queue.claim(lease, Pool.SPOT, 2))
        world.blocked()
        stopped.opened.set()
        assert claimed.result() == []
        reaped.result()
    assert world.lines("queue", batch) == [1, 2]


def test_sweep_skips_requests_being_settled(world: World) -> None:
    batch = world.batch(1)
    ((lease, claim),) = _claim_each(world, 1)
    slow = world.own_engine("worker")
    with gate(slow, before="COMMIT") as stopped:
        settlement = Running(lambda: world.queue_on(slow).settle(lease, [done(claim)], []))
        stopped.wait()
        world.expire_lease(lease)
        assert world.sweep() == 0
        stopped.opened.set()
        assert settlement.result().finished == 1
    world.sweep()
    assert world.lines("results", batch) == [1]
    assert world.drained(batch) == 1


def test_cancel_is_idempotent_until_batch_completes(world: World) -> None:
    batch = world.batch(2)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    (claim,) = world.queue.claim(lease, Pool.SPOT, 1)
    assert world.cancel(batch) is False
    first = world.row(batch).cancelling_at
    assert world.cancel(batch) is False
    assert world.row(batch).cancelling_at == first
    world.queue.settle(lease, [done(claim)], [])
    assert world.cancel(batch) is False
    assert world.drained(batch) == 1
    world.run("UPDATE batches SET status = 'completed', completed_at = now()")
    with pytest.raises(Conflict, match="completed and cannot be cancelled"):
        world.cancel(batch)


def test_concurrent_cancels_drain_batch_once(world: World) -> None:
    for _ in range(5):
        batch = world.batch(20)
        drained = together(*[partial(world.cancel, batch)] * 4)
        assert sorted(drained) == [False, False, False, True]
        assert world.drained(batch) == 1


def test_expiring_batch_ignores_cancel(world: World) -> None:
    """Its error file is already being written and may name only one reason."""
    batch = world.batch(2, due_in=-1)
    world.sweep()
    assert world.row(batch).drained_at is not None
    assert world.cancel(batch) is False
    assert world.row(batch).status == "in_progress"
    assert world.drained(batch) == 1


def test_finalizing_batch_can_be_cancelled(world: World) -> None:
    batch = world.batch(1)
    ((lease, claim),) = _claim_each(world, 1)
    world.queue.settle(lease, [done(claim)], [])
    assert world.cancel(batch) is True
    assert world.row(batch).status == "cancelling"
    assert world.drained(batch) == 2

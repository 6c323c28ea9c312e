"""Many leases expire at once: each request is released once, and nothing else waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lowtide.core.ids import new_id
from lowtide.core.pools import Pool
from lowtide.queue.store import requeue
from lowtide.scheduler.sweep import SweepStore
from tests.loads import fill
from tests.worlds import MAX_LOST_LEASES, Running, World, done, gate, numbers, together

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import BatchId, LeaseId
    from lowtide.queue.claims import Claim

WORKERS, CLAIMED = 50, 6
LOST = WORKERS * CLAIMED


def _lose(world: World) -> list[tuple[LeaseId, Claim]]:
    """Let workers claim requests and stop renewing their leases."""
    leases = [world.queue.open_lease(Pool.SPOT, "doomed") for _ in range(WORKERS)]
    claims = [
        (lease, each) for lease in leases for each in world.queue.claim(lease, Pool.SPOT, CLAIMED)
    ]
    world.run("UPDATE workers SET expires_at = now() - interval '1 s' WHERE name = 'doomed'")
    return claims


def _sweep_on(engine: Engine) -> Callable[[], int]:
    ticks = SweepStore(engine, new_id=new_id, max_lost_leases=MAX_LOST_LEASES)
    return lambda: ticks.sweep(cancel_grace=1e6, stalled_after=1e6).reaped


def _work(world: World, batch: BatchId, requests: int) -> int:
    """Claim and complete requests of an unaffected batch; return their number."""
    queue = world.queue_on(world.own_engine("worker"))
    lease = queue.open_lease(Pool.DEDICATED, "living")
    finished = 0
    while finished < requests:
        claims = queue.claim(lease, Pool.DEDICATED, 10)
        assert {claim.batch for claim in claims} == {batch}
        finished += queue.settle(lease, [done(claim) for claim in claims], []).finished
    return finished


def test_mass_lease_expiry_releases_each_request_once(world: World) -> None:
    """Most workers survive, so that requests lost by three workers in a row are dead-lettered."""
    batch = fill(world, LOST)
    for _ in range(WORKERS + 1):
        world.queue.open_lease(Pool.SPOT, "living")
    other = fill(world, 400, pool="dedicated")
    sweeps = [_sweep_on(world.own_engine("worker")) for _ in range(2)]
    for round_ in range(1, MAX_LOST_LEASES + 1):
        claims = _lose(world)
        assert len(claims) == LOST
        *reaped, finished = together(*sweeps, lambda: _work(world, other, 100))
        assert (sum(reaped), finished) == (LOST, 100)
        assert world.lines("claims", batch) == []
        row = world.row(batch)
        if round_ == MAX_LOST_LEASES:
            break
        assert world.lines("queue", batch) == list(range(1, LOST + 1))
        assert (row.interrupted, row.tallied_failed, row.retried) == (round_ * LOST, 0, 0)
        rows = world.rows(
            "SELECT DISTINCT lost_leases, interruptions FROM queue WHERE pool = 'spot'"
        )
        assert [tuple(each) for each in rows] == [(round_, round_)]
        assert world.value("SELECT count(*) FROM workers WHERE name = 'doomed'") == 0
        world.run("UPDATE queued_runs SET available_at = now() WHERE pool = 'spot'")
    assert (row.interrupted, row.tallied_failed) == ((MAX_LOST_LEASES - 1) * LOST, LOST)
    assert world.lines("dead_letters", batch) == list(range(1, LOST + 1))
    assert world.lines("results", batch) == list(range(1, LOST + 1))
    assert (world.drained(batch), row.status) == (1, "finalizing")


def test_concurrent_sweeps_in_small_sets_release_each_request_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowtide.scheduler.sweep._LEASES_PER_SET", 7)
    batch = fill(world, LOST)
    _lose(world)
    sweeps = [_sweep_on(world.own_engine("worker")) for _ in range(2)]
    assert sum(together(*sweeps)) == LOST
    assert world.lines("queue", batch) == list(range(1, LOST + 1))
    assert world.row(batch).interrupted == LOST


def test_requests_of_lost_leases_are_released_in_bounded_sets(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set ends with a whole run."""
    sizes: list[int] = []

    def requeued(connection: Connection, records: Sequence[Mapping[str, Any]]) -> list[BatchId]:
        sizes.append(len(records))
        return requeue(connection, records)

    monkeypatch.setattr("lowtide.scheduler.sweep._REQUESTS_PER_SET", 50)
    monkeypatch.setattr("lowtide.scheduler.sweep.requeue", requeued)
    batch = fill(world, LOST)
    _lose(world)
    world.sweep()
    assert sum(sizes) == LOST
    assert max(sizes) < 50 + CLAIMED
    assert world.lines("queue", batch) == list(range(1, LOST + 1))


def test_requests_lost_twice_become_available_over_seconds(world: World) -> None:
    """The first loss delays nothing; the second one spreads the requests over seconds."""
    batch = fill(world, LOST)
    _lose(world)
    world.sweep()
    assert world.value("SELECT count(*) FROM queue WHERE available_at <= now()") == LOST
    _lose(world)
    world.sweep()
    waits = [
        row.wait
        for row in world.rows(
            "SELECT extract(epoch FROM available_at - max(queued_at) OVER ()) AS wait FROM queue "
            "WHERE batch_id = :batch",
            batch=batch,
        )
    ]
    assert len(set(waits)) > LOST * 0.9
    # Uniform over eight seconds: the middle half takes about four of them.
    ordered = sorted(waits)
    assert ordered[3 * LOST // 4] - ordered[LOST // 4] > 2


def test_sweep_blocks_neither_claims_nor_settlements(world: World) -> None:
    """The sweep, stopped before it queues requests, locks only these and the ends of their batches."""
    batch = fill(world, LOST + 20)
    living = world.queue.open_lease(Pool.SPOT, "living")
    claims = world.queue.claim(living, Pool.SPOT, 5)
    (zombie, lost), *_ = _lose(world)
    slow = world.own_engine("worker")
    with gate(slow, before="INSERT INTO queued_runs") as stopped:
        sweep = Running(_sweep_on(slow))
        stopped.wait()
        assert numbers(world.queue.claim(living, Pool.SPOT, 5)) == list(range(LOST + 6, LOST + 11))
        assert world.queue.renew(living)
        assert world.queue.settle(living, [done(claim) for claim in claims], []).finished == 5
        reaped_by_other = _sweep_on(world.own_engine("worker"))()
        assert 0 < reaped_by_other < LOST
        late_settlement = Running(lambda: world.queue.settle(zombie, [done(lost)], []))
        world.blocked()
        stopped.opened.set()
        assert sweep.result() + reaped_by_other == LOST
        assert late_settlement.result().finished == 0
    assert world.row(batch).interrupted == LOST


@pytest.mark.parametrize("commits", [True, False])
def test_next_sweep_releases_requests_of_killed_sweep(world: World, *, commits: bool) -> None:
    batch = fill(world, LOST)
    _lose(world)
    slow = world.own_engine("worker")
    with gate(slow, before="COMMIT") as stopped:
        sweep = Running(_sweep_on(slow))
        stopped.wait()
        if not commits:
            world.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE state = 'idle in transaction' AND datname = current_database()"
            )
        stopped.opened.set()
        if commits:
            assert sweep.result() == LOST
        else:
            with pytest.raises(Exception, match="is not responding"):
                sweep.result()
    assert world.sweep() == (0 if commits else LOST)
    assert world.lines("queue", batch) == list(range(1, LOST + 1))
    assert world.row(batch).interrupted == LOST

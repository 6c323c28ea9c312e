"""Many leases run out at once: every line comes back once, and nobody else has to wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.core.ids import new_id
from lowtide.core.pools import Pool
from lowtide.scheduler.sweep import SweepStore
from tests.loads import fill
from tests.worlds import MAX_LOST_LEASES, Running, World, done, gate, numbers, together

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from lowtide.core.ids import BatchId, LeaseId
    from lowtide.queue.claims import Claim

WORKERS, HELD = 50, 6
LOST = WORKERS * HELD


def _lose(world: World) -> list[tuple[LeaseId, Claim]]:
    """Let workers take lines and fall silent."""
    leases = [world.queue.open_lease(Pool.SPOT, "doomed") for _ in range(WORKERS)]
    held = [(lease, each) for lease in leases for each in world.queue.claim(lease, Pool.SPOT, HELD)]
    world.run("UPDATE workers SET expires_at = now() - interval '1 s' WHERE name = 'doomed'")
    return held


def _sweep_on(engine: Engine) -> Callable[[], int]:
    ticks = SweepStore(engine, new_id=new_id, max_lost_leases=MAX_LOST_LEASES)
    return lambda: ticks.sweep(cancel_grace=1e6, stalled_after=1e6).reaped


def _work(world: World, batch: BatchId, lines: int) -> int:
    """Claim and complete lines that others do not touch; return how many."""
    queue = world.queue_on(world.own_engine("worker"))
    lease = queue.open_lease(Pool.DEDICATED, "living")
    ended = 0
    while ended < lines:
        claims = queue.claim(lease, Pool.DEDICATED, 10)
        assert {claim.batch for claim in claims} == {batch}
        ended += queue.settle(lease, [done(claim) for claim in claims], []).finished
    return ended


def test_mass_lease_expiry_releases_each_request_once(world: World) -> None:
    """Lost by three workers in a row, each is a dead letter, once: most workers live on."""
    batch = fill(world, LOST)
    for _ in range(WORKERS + 1):
        world.queue.open_lease(Pool.SPOT, "living")
    other = fill(world, 400, pool="dedicated")
    sweeps = [_sweep_on(world.own_engine("worker")) for _ in range(2)]
    for storm in range(1, MAX_LOST_LEASES + 1):
        held = _lose(world)
        assert len(held) == LOST
        *reaped, ended = together(*sweeps, lambda: _work(world, other, 100))
        assert (sum(reaped), ended) == (LOST, 100)
        assert world.lines("claims", batch) == []
        row = world.row(batch)
        if storm == MAX_LOST_LEASES:
            break
        assert world.lines("queue", batch) == list(range(1, LOST + 1))
        assert (row.interrupted, row.tallied_failed, row.retried) == (storm * LOST, 0, 0)
        rows = world.rows(
            "SELECT DISTINCT lost_leases, interruptions FROM queue WHERE pool = 'spot'"
        )
        assert [tuple(each) for each in rows] == [(storm, storm)]
        assert world.value("SELECT count(*) FROM workers WHERE name = 'doomed'") == 0
        world.run("UPDATE queue SET available_at = now() WHERE pool = 'spot'")
    assert (row.interrupted, row.tallied_failed) == ((MAX_LOST_LEASES - 1) * LOST, LOST)
    assert world.lines("dead_letters", batch) == list(range(1, LOST + 1))
    assert world.lines("results", batch) == list(range(1, LOST + 1))
    assert (world.drained(batch), row.status) == (1, "finalizing")


def test_concurrent_sweeps_in_small_sets_release_each_request_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that none of its locks is held for long."""
    monkeypatch.setattr("lowtide.scheduler.sweep._LEASES_PER_SET", 7)
    batch = fill(world, LOST)
    _lose(world)
    sweeps = [_sweep_on(world.own_engine("worker")) for _ in range(2)]
    assert sum(together(*sweeps)) == LOST
    assert world.lines("queue", batch) == list(range(1, LOST + 1))
    assert world.row(batch).interrupted == LOST


def test_requests_lost_twice_become_available_over_seconds(world: World) -> None:
    """At first nothing waits; then lines come back over seconds, no two storms in step."""
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
    """It locks what it takes back, and its batches' ends; held here before it queues the lines."""
    batch = fill(world, LOST + 20)
    living = world.queue.open_lease(Pool.SPOT, "living")
    mine = world.queue.claim(living, Pool.SPOT, 5)
    (zombie, lost), *_ = _lose(world)
    slow = world.own_engine("worker")
    with gate(slow, before="INSERT INTO queue") as held:
        sweep = Running(_sweep_on(slow))
        held.wait()
        assert numbers(world.queue.claim(living, Pool.SPOT, 5)) == list(range(LOST + 6, LOST + 11))
        assert world.queue.renew(living)
        assert world.queue.settle(living, [done(claim) for claim in mine], []).finished == 5
        beside = _sweep_on(world.own_engine("worker"))()
        assert 0 < beside < LOST
        late = Running(lambda: world.queue.settle(zombie, [done(lost)], []))
        world.blocked()
        held.opened.set()
        assert sweep.result() + beside == LOST
        assert late.result().finished == 0
    assert world.row(batch).interrupted == LOST


@pytest.mark.parametrize("commits", [True, False])
def test_next_sweep_releases_requests_of_killed_sweep(
    world: World, *, commits: bool
) -> None:
    batch = fill(world, LOST)
    _lose(world)
    slow = world.own_engine("worker")
    with gate(slow, before="COMMIT") as held:
        sweep = Running(_sweep_on(slow))
        held.wait()
        if not commits:
            world.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE state = 'idle in transaction' AND datname = current_database()"
            )
        held.opened.set()
        if commits:
            assert sweep.result() == LOST
        else:
            with pytest.raises(Exception, match="is not responding"):
                sweep.result()
    assert world.sweep() == (0 if commits else LOST)
    assert world.lines("queue", batch) == list(range(1, LOST + 1))
    assert world.row(batch).interrupted == LOST

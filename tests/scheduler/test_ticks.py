"""Sweeps: lost leases, dead letters, expiry, cancellation and stalled batches."""

from __future__ import annotations

import pytest

from lowtide.core.pools import Pool
from lowtide.events.model import EventType
from tests.worlds import MAX_LOST_LEASES, Running, World, done, gate, numbers, together


def _lose(world: World, requests: int, pool: Pool = Pool.SPOT) -> list[int]:
    """Let a worker die with claimed requests; the test itself sweeps."""
    lease = world.queue.open_lease(pool, "doomed")
    claims = world.queue.claim(lease, pool, requests)
    world.expire_lease(lease)
    return numbers(claims)


def test_requests_of_lost_worker_are_released_and_counted(world: World) -> None:
    batch = world.batch(3)
    live_lease = world.queue.open_lease(Pool.SPOT, "living")
    (kept,) = world.queue.claim(live_lease, Pool.SPOT, 1)
    assert _lose(world, 2) == [2, 3]
    assert world.sweep() == 2
    assert world.lines("claims", batch) == [kept.line]
    assert [
        (row.line, row.attempts, row.interruptions, row.lost_leases, row.pool)
        for row in world.rows("SELECT * FROM queue ORDER BY line")
    ] == [(2, 0, 1, 1, "spot"), (3, 0, 1, 1, "spot")]
    row = world.row(batch)
    assert (row.interrupted, row.retried) == (2, 0)
    kinds = world.rows("SELECT kind, detail FROM request_events ORDER BY line")
    assert [(row.kind, row.detail) for row in kinds] == [
        ("interrupted", "The worker stopped responding")
    ] * 2
    assert world.value("SELECT count(*) FROM workers") == 1
    assert world.sweep() == 0


def test_claims_without_worker_are_released(world: World) -> None:
    batch = world.batch(2)
    _lose(world, 2)
    world.run("DELETE FROM workers")
    assert world.sweep() == 2
    assert world.lines("queue", batch) == [1, 2]


def test_request_that_loses_every_worker_is_dead_lettered(world: World) -> None:
    batch = world.batch(2)
    healthy = world.queue.open_lease(Pool.SPOT, "w")
    for lost in range(1, MAX_LOST_LEASES):
        assert _lose(world, 1) == [1]
        world.sweep()
        assert world.value("SELECT lost_leases FROM queue WHERE line = 1") == lost
        world.run("UPDATE queued_runs SET available_at = now()")
    assert _lose(world, 1) == [1]
    assert world.sweep() == 1
    assert world.lines("queue", batch) == [2]
    (row,) = world.rows("SELECT * FROM results")
    assert (row.line, row.succeeded, row.dead_lettered, row.error_code) == (
        1,
        False,
        True,
        "worker_lost",
    )
    assert (
        row.error_message
        == f"{MAX_LOST_LEASES} workers in a row were lost while running this request."
    )
    assert row.status_code is None
    assert world.lines("dead_letters", batch) == [1]
    assert world.row(batch).tallied_failed == 1
    assert world.drained(batch) == 0
    (other,) = world.queue.claim(healthy, Pool.SPOT, 5)
    world.queue.settle(healthy, [done(other)], [])
    assert world.drained(batch) == 1


def test_requests_lost_twice_become_available_at_different_times(world: World) -> None:
    world.batch(20)
    _lose(world, 20)
    world.sweep()
    assert world.value("SELECT count(*) FROM queue WHERE available_at <= now()") == 20
    _lose(world, 20)
    world.sweep()
    assert world.value("SELECT count(DISTINCT available_at) FROM queue") == 20
    assert world.value("SELECT max(available_at) <= now() + interval '8 s' FROM queue")


def test_dead_lettering_last_request_drains_batch(world: World) -> None:
    batch = world.batch(1)
    for _ in range(MAX_LOST_LEASES):
        _lose(world, 1)
        world.sweep()
        world.run("UPDATE queued_runs SET available_at = now()")
    assert world.drained(batch) == 1
    assert world.row(batch).status == "finalizing"


def test_release_resets_lost_leases(world: World) -> None:
    world.batch(1)
    for _ in range(MAX_LOST_LEASES + 2):
        _lose(world, 1)
        world.sweep()
        lease = world.queue.open_lease(Pool.SPOT, "w")
        world.queue.claim(lease, Pool.SPOT, 1)
        world.queue.close_lease(lease)
    assert world.value("SELECT lost_leases FROM queue") == 0


def test_interruption_count_saturates_without_error(world: World) -> None:
    world.batch(2)
    world.run("UPDATE queued_runs SET interruptions = 32767 WHERE line = 1")
    _lose(world, 2)
    assert world.sweep() == 2
    assert world.value("SELECT interruptions FROM queue WHERE line = 1") == 32767


def test_concurrent_sweeps_release_each_request_once(world: World) -> None:
    for _ in range(5):
        batch = world.batch(20)
        _lose(world, 20)
        assert sum(together(*[world.sweep] * 3)) == 20
        assert world.row(batch).interrupted == 20
        assert world.lines("queue", batch) == list(range(1, 21))
        world.cancel(batch)


def test_batch_past_deadline_expires_and_drains(world: World) -> None:
    batch, later = world.batch(3, due_in=-1), world.batch(1, due_in=60)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 2)
    assert world.queue.settle(lease, [done(claims[0])], []).finished == 1
    world.sweep()
    assert (world.lines("queue", batch), world.lines("claims", batch)) == ([], [])
    assert world.lines("results", batch) == [1]
    row = world.row(batch)
    assert (row.status, row.expiring, row.drained_at is not None) == ("in_progress", True, True)
    assert world.drained(batch) == 1
    assert world.queue.settle(lease, [done(claims[1])], []).finished == 0
    world.sweep()
    assert world.drained(batch) == 1
    assert (world.lines("queue", later), world.row(later).expiring) == ([1], False)


def test_expired_batch_drops_the_rest_of_a_run_that_was_being_settled(world: World) -> None:
    batch = world.batch(20)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    first, *_ = world.queue.claim(lease, Pool.SPOT, 10)
    world.run("UPDATE batches SET deadline = now() - interval '1 s'")
    slow = world.own_engine("worker")
    with gate(slow, before="COMMIT") as stopped:
        settlement = Running(lambda: world.queue_on(slow).settle(lease, [done(first)], []))
        stopped.wait()
        world.sweep()
        assert world.lines("claims", batch) == list(range(1, 11))
        stopped.opened.set()
        settlement.result()
    world.sweep()
    assert (world.lines("claims", batch), world.drained(batch)) == ([], 1)
    assert world.lines("results", batch) == [1]


def test_running_requests_of_cancelled_batch_get_grace_period(world: World) -> None:
    batch = world.batch(2)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 2)
    assert world.cancel(batch) is False
    world.sweep(cancel_grace=60)
    assert world.lines("claims", batch) == [1, 2]
    assert world.queue.settle(lease, [done(claims[0])], []).finished == 1
    world.run("UPDATE batches SET cancelling_at = cancelling_at - interval '61 s'")
    world.sweep(cancel_grace=60)
    assert world.lines("claims", batch) == []
    assert world.drained(batch) == 1
    assert world.row(batch).status == "cancelling"
    assert world.queue.settle(lease, [done(claims[1])], []).finished == 0


@pytest.mark.parametrize(
    ("state", "announced"),
    [
        pytest.param("validating", EventType.BATCH_CREATED, id="awaiting split"),
        pytest.param("finalizing", EventType.BATCH_DRAINED, id="awaiting finalization"),
        pytest.param("cancelling", EventType.BATCH_DRAINED, id="cancelled and drained"),
        pytest.param("expired", EventType.BATCH_DRAINED, id="expired and drained"),
        pytest.param("running", None, id="running"),
        pytest.param("cancelled", None, id="cancelled"),
    ],
)
def test_stalled_batch_is_announced_again(
    world: World, state: str, announced: EventType | None
) -> None:
    if state == "validating":
        batch = world.new_batch()
    else:
        batch = world.batch(1, due_in=-1 if state == "expired" else 60)
        if state in {"cancelling", "cancelled"}:
            world.cancel(batch)
        elif state == "finalizing":
            lease = world.queue.open_lease(Pool.SPOT, "w")
            world.queue.settle(lease, [done(*world.queue.claim(lease, Pool.SPOT, 1))], [])
        if state == "cancelled":
            world.run("UPDATE batches SET status = 'cancelled'")
    world.sweep(stalled_after=30)
    world.run("DELETE FROM outbox")
    world.sweep(stalled_after=30)
    assert sum(world.events(batch).values()) == 0
    world.run("UPDATE batches SET nudged_at = now() - interval '31 s'")
    world.sweep(stalled_after=30)
    world.sweep(stalled_after=30)
    assert dict(world.events(batch)) == ({announced.value: 1} if announced else {})


def test_stalled_batch_is_announced_once_until_event_is_sent(world: World) -> None:
    batch = world.batch(1)
    world.run("UPDATE batches SET status = 'validating', nudged_at = now() - interval '1 h'")
    world.run("DELETE FROM outbox")
    for _ in range(3):
        world.ticks.sweep(cancel_grace=0, stalled_after=1)
        world.run("UPDATE batches SET nudged_at = now() - interval '1 h'")
    assert world.value("SELECT subject FROM outbox") == f"batch_{batch.hex}"


def test_stalled_batch_resends_its_delayed_event_at_once(world: World) -> None:
    batch = world.new_batch()
    world.run("UPDATE outbox SET attempts = 9, next_at = now() + interval '300 s'")
    world.run("UPDATE batches SET nudged_at = now() - interval '31 s'")
    world.sweep(stalled_after=30)
    assert [event.subject for event in world.outbox.due(9)] == [f"batch_{batch.hex}"]
    assert world.value("SELECT count(*) FROM outbox") == 1


def test_sweep_counts_requests_in_time_and_late(world: World) -> None:
    world.batch(4, due_in=-1)
    world.batch(3)
    _lose(world, 5)
    swept = world.ticks.sweep(cancel_grace=0, stalled_after=1e6)
    # All four requests of the late batch were reaped and dropped, one of the other was released.
    assert (swept.reaped, swept.interrupted) == (5, 5)
    assert (swept.in_time, swept.late) == (0, 4)
    world.run("UPDATE queued_runs SET lost_leases = 99, available_at = now()")
    assert _lose(world, 2, Pool.SPOT) == [1, 2]
    swept = world.ticks.sweep(cancel_grace=0, stalled_after=1e6)
    assert (swept.in_time, swept.late) == (2, 0)
    assert world.value("SELECT count(*) FROM dead_letters") == 2


def test_storm_alone_dead_letters_no_request(world: World) -> None:
    batch = world.batch(6)

    def lose_each_alone() -> None:
        world.run("UPDATE queued_runs SET available_at = now()")
        leases = [world.queue.open_lease(Pool.SPOT, "doomed") for _ in range(6)]
        for lease in leases:
            assert len(world.queue.claim(lease, Pool.SPOT, 1)) == 1
            world.expire_lease(lease)

    for _ in range(MAX_LOST_LEASES + 1):
        lose_each_alone()
        assert world.sweep() == 6
    rows = world.rows("SELECT DISTINCT lost_leases, interruptions FROM queue")
    assert [tuple(row) for row in rows] == [(MAX_LOST_LEASES - 1, MAX_LOST_LEASES + 1)]
    # When most workers survive, the request is to blame.
    living = [world.queue.open_lease(Pool.SPOT, "living") for _ in range(7)]
    lose_each_alone()
    assert world.sweep() == 6
    assert world.lines("dead_letters", batch) == [1, 2, 3, 4, 5, 6]
    assert all(world.queue.renew(lease) for lease in living)

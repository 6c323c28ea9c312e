"""Runs: rows of the queue and of the claims that hold several requests, and how they are taken apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.core.ids import BatchId, new_id
from lowtide.core.pools import Pool
from lowtide.core.runs import RUN_LINES, lines_of
from lowtide.planning.escalation import Move, Plan
from lowtide.queue.claims import Claim, Returned
from lowtide.scheduler.plan import PlanStore
from tests.loads import fill
from tests.retention.days import new_id_of
from tests.worlds import Running, World, done, gate, numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.core.ids import LeaseId


def _spot_lease(world: World) -> LeaseId:
    return world.queue.open_lease(Pool.SPOT, "w")


def _runs(world: World, table: str) -> list[tuple[int, list[int]]]:
    """Return the first line and all lines of each run, in order."""
    sql = f"SELECT line, size, lines::text FROM {table} ORDER BY batch_id, line, lower(lines)"  # noqa: S608
    rows = world.rows(sql)
    assert [row.size for row in rows] == [len(list(lines_of(row.lines))) for row in rows]
    return [(row.line, list(lines_of(row.lines))) for row in rows]


def _queued(world: World) -> list[list[int]]:
    return [lines for _, lines in _runs(world, "queued_runs")]


def _claimed(world: World) -> list[list[int]]:
    return [lines for _, lines in _runs(world, "claimed_runs")]


def _returned(
    claims: Sequence[Claim], reason: str = "", delay: float = 0.0, *, failed: bool = False
) -> list[Returned]:
    return [Returned(each.batch, each.line, reason, delay, failed=failed) for each in claims]


def _settle(world: World, lease: LeaseId, claims: Sequence[Claim]) -> int:
    return world.queue.settle(lease, [done(claim) for claim in claims], []).finished


# Claims


def test_claim_takes_part_of_a_run_and_the_rest_stays_as_it_was(world: World) -> None:
    fill(world, 200)
    world.run("UPDATE queued_runs SET attempts = 3, interruptions = 2, lost_leases = 1")
    history = "SELECT available_at, queued_at, deadline, attempts, interruptions, lost_leases, pool FROM {}"
    (before,) = set(world.rows(history.format("queued_runs")))
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 10)
    assert numbers(claims) == list(range(1, 11))
    assert {(claim.attempts, claim.interruptions) for claim in claims} == {(3, 2)}
    assert _queued(world) == [list(range(11, 129)), list(range(129, 201))]
    assert _claimed(world) == [list(range(1, 11))]
    assert set(world.rows(history.format("queued_runs"))) == {before}
    assert numbers(world.queue.claim(lease, Pool.SPOT, 120)) == list(range(11, 131))
    assert _queued(world) == [list(range(131, 201))]


def test_claim_takes_first_lines_of_a_run_with_gaps(world: World) -> None:
    batch = fill(world, 20)
    lease, other = _spot_lease(world), _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 20)
    world.queue.settle(lease, [], _returned([claims[n - 1] for n in (2, 3, 4, 7, 11, 12, 20)]))
    assert _queued(world) == [[2, 3, 4, 7, 11, 12, 20]]
    assert numbers(world.queue.claim(other, Pool.SPOT, 5)) == [2, 3, 4, 7, 11]
    assert _queued(world) == [[12, 20]]
    assert world.lines("queue", batch) == [12, 20]


def test_workers_hold_parts_of_one_block_and_settle_only_their_own(world: World) -> None:
    batch = fill(world, 30)
    mine, other = _spot_lease(world), _spot_lease(world)
    own = [*world.queue.claim(mine, Pool.SPOT, 10)]
    others = world.queue.claim(other, Pool.SPOT, 10)
    own += world.queue.claim(mine, Pool.SPOT, 10)
    everything = [*own, *others]
    assert _settle(world, other, everything) == 10
    assert world.lines("results", batch) == list(range(11, 21))
    assert _claimed(world) == [list(range(1, 11)), list(range(21, 31))]
    assert _settle(world, mine, everything) == 20
    assert world.lines("results", batch) == list(range(1, 31))
    assert (_claimed(world), world.drained(batch)) == ([], 1)


def test_first_line_of_an_open_run_is_claimed_again_by_the_same_worker(world: World) -> None:
    batch = fill(world, 6)
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 6)
    world.queue.settle(lease, [], _returned(claims[:1], failed=True))
    (again,) = world.queue.claim(lease, Pool.SPOT, 6)
    assert (again.line, again.attempts) == (1, 1)
    assert _runs(world, "claimed_runs") == [(1, [1]), (1, [2, 3, 4, 5, 6])]
    assert _settle(world, lease, [claims[2], again]) == 2
    assert _runs(world, "claimed_runs") == [(1, [2, 4, 5, 6])]
    world.queue.settle(lease, [], _returned(claims[1:2]))
    assert numbers(world.queue.claim(lease, Pool.SPOT, 6)) == [2]
    assert _settle(world, lease, claims) == 4
    attempts = world.rows("SELECT line, attempts FROM results ORDER BY line")
    assert [tuple(row) for row in attempts] == [(1, 2), *[(line, 1) for line in range(2, 7)]]
    assert world.drained(batch) == 1


# Settlements


def test_requests_of_a_run_end_in_any_order(world: World) -> None:
    batch = fill(world, 140)
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 140)
    order = [(line * 37) % 140 for line in range(140)]
    left = set(range(1, 141))
    for start in range(0, 140, 20):
        chosen = [claims[index] for index in order[start : start + 20]]
        assert _settle(world, lease, chosen) == 20
        left -= set(numbers(chosen))
        blocks = [[n for n in left if n <= RUN_LINES], [n for n in left if n > RUN_LINES]]
        assert _runs(world, "claimed_runs") == [
            (first, sorted(block)) for first, block in zip((1, 129), blocks, strict=True) if block
        ]
    assert world.lines("results", batch) == list(range(1, 141))
    assert (world.row(batch).tallied_completed, world.drained(batch)) == (140, 1)


def test_settlement_ends_only_what_of_a_run_is_still_its_own(world: World) -> None:
    batch = fill(world, 10)
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 10)
    assert _settle(world, lease, claims[1:3]) == 2
    assert world.apply(Plan(revocations=(Move(batch, 4),))).revoked == 4
    settled = world.queue.settle(
        lease, [done(claim) for claim in claims[:8]], _returned(claims[8:], failed=True)
    )
    assert (settled.finished, settled.returned) == (4, 0)
    assert world.lines("results", batch) == [1, 2, 3, 4, 5, 6]
    assert world.lines("queue", batch) == [7, 8, 9, 10]
    row = world.row(batch)
    assert (row.tallied_completed, row.retried, row.input_tokens) == (6, 0, 18)
    usage = world.rows("SELECT sum(requests) AS requests FROM usage_days")
    assert [row.requests for row in usage] == [6]


def test_results_of_batches_of_two_days_are_stored_together(world: World) -> None:
    # All days before the installation share a partition.
    batches = [BatchId(new_id()), new_id_of(-3)]
    for batch in batches:
        world.run("SELECT make_partitions(:batch)", batch=batch)
        fill(world, 130, batch=batch)
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 260)
    world.queue.settle(lease, [done(claim) for claim in claims[1:]], _returned(claims[:1]))
    rows = world.rows("SELECT DISTINCT tableoid::regclass::text AS name, batch_id FROM results")
    assert len({row.name for row in rows}) == 2
    assert {row.batch_id for row in rows} == set(batches)
    returned = claims[0]
    for batch in batches:
        missing = [returned.line] if batch == returned.batch else []
        assert world.lines("results", batch) == [n for n in range(1, 131) if n not in missing]
        assert world.lines("queue", batch) == missing
        assert world.drained(batch) == (not missing)


@pytest.mark.parametrize("resent", ["returned", "finished"])
def test_request_claimed_again_during_a_settlement_stays_claimed(world: World, resent: str) -> None:
    """A settlement is sent twice if its response is lost; what it released may be claimed meanwhile."""
    batch = fill(world, 3)
    lease = _spot_lease(world)
    first, second, _ = world.queue.claim(lease, Pool.SPOT, 3)
    world.queue.settle(lease, [], _returned([first]))
    slow = world.own_engine("worker")
    with gate(slow, before="shortened AS") as stopped:
        finished = [done(first), done(second)] if resent == "finished" else []
        returned = _returned([first, second]) if resent == "returned" else []
        settlement = Running(lambda: world.queue_on(slow).settle(lease, finished, returned))
        stopped.wait()
        claimed = world.queue.claim(lease, Pool.SPOT, 1)
        stopped.opened.set()
        settled = settlement.result()
    assert numbers(claimed) == [1]
    assert world.lines("claims", batch) == [1, 3]
    assert world.lines("results" if resent == "finished" else "queue", batch) == [2]
    assert settled.finished + settled.returned == 1


def test_settlement_and_revocation_of_a_run_do_not_wait_for_each_other(world: World) -> None:
    batch = fill(world, 140)
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 140)
    slow = world.own_engine("worker")
    timetable = PlanStore(slow, new_id=new_id)
    plan = Plan(revocations=(Move(batch, 1),))
    with gate(slow, before="interruptions + interrupted") as stopped:
        revocation = Running(lambda: timetable.replan(lambda _: plan))
        stopped.wait()
        settlement = Running(
            lambda: world.queue.settle(lease, [done(claims[0])], _returned(claims[130:132]))
        )
        world.blocked()
        stopped.opened.set()
        settled = settlement.result()
        assert revocation.result()["default"].revoked == 1
    assert (settled.finished, settled.returned) == (1, 2)
    assert world.lines("queue", batch) == [131, 132, 140]


# Releases


def test_released_requests_with_equal_history_form_runs_again(world: World) -> None:
    fill(world, 140)
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 140)
    # Line by line, as the requests of a worker end.
    returned = [
        *_returned([claims[n - 1] for n in (5, 1, 2, 3)]),
        *_returned([claims[n - 1] for n in (4, 6, 7)], "retry", failed=True),
        *_returned([claims[n - 1] for n in (8, 9)], "retry", 60.0, failed=True),
        *_returned([claims[n - 1] for n in (128, 129, 130)]),
    ]
    assert world.queue.settle(lease, [], returned).returned == len(returned)
    assert _queued(world) == [[1, 2, 3, 5, 128], [4, 6, 7], [8, 9], [129, 130]]
    rows = world.rows("SELECT line, attempts FROM queued_runs ORDER BY line")
    assert [tuple(row) for row in rows] == [(1, 0), (4, 1), (8, 1), (129, 0)]


def test_requests_with_different_history_stay_apart(world: World) -> None:
    fill(world, 4)
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 4)
    world.queue.settle(lease, [], _returned(claims[1:2], failed=True))
    claims = [*claims, *world.queue.claim(lease, Pool.SPOT, 1)]
    world.queue.settle(lease, [], _returned([*claims[:1], *claims[2:]]))
    assert _queued(world) == [[1, 3, 4], [2]]


def test_closed_lease_releases_what_is_left_of_its_runs(world: World) -> None:
    fill(world, 140)
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 135)
    _settle(world, lease, [*claims[9:20], claims[130]])
    world.queue.close_lease(lease)
    assert _claimed(world) == []
    assert _queued(world) == [
        [*range(1, 10), *range(21, 129)],
        [129, 130, *range(132, 136)],
        list(range(136, 141)),
    ]


def test_lost_lease_loses_what_is_left_of_its_runs(world: World) -> None:
    batch = fill(world, 6)
    first, second = _spot_lease(world), _spot_lease(world)
    _settle(world, first, world.queue.claim(first, Pool.SPOT, 4)[1:2])
    world.expire_lease(first)
    assert world.sweep() == 3
    assert _queued(world) == [[1, 3, 4], [5, 6]]
    counts = "SELECT line, interruptions, lost_leases FROM queue ORDER BY line"
    assert [tuple(row) for row in world.rows(counts)] == [
        (1, 1, 1), (3, 1, 1), (4, 1, 1), (5, 0, 0), (6, 0, 0)
    ]  # fmt: skip
    assert len(world.queue.claim(second, Pool.SPOT, 9)) == 5
    world.expire_lease(second)
    assert world.sweep() == 5
    # Each request that is lost again waits on its own, so that one of them cannot take the others along.
    assert _queued(world) == [[1], [3], [4], [5, 6]]
    delays = world.rows(
        "SELECT available_at > now() AS later, available_at FROM queued_runs WHERE line < 5"
    )
    assert len({row.available_at for row in delays}) == 3
    assert world.row(batch).interrupted == 8


# Moves


def test_escalation_takes_the_end_of_runs(world: World) -> None:
    batch = fill(world, 260)
    lease = _spot_lease(world)
    world.queue.claim(lease, Pool.SPOT, 2)
    assert world.escalate(batch, 8) == 8
    assert _queued(world) == [
        list(range(3, 129)), list(range(129, 253)), list(range(253, 257)), list(range(257, 261))
    ]  # fmt: skip
    pools = "SELECT line FROM queued_runs WHERE pool = 'dedicated' AND escalated ORDER BY line"
    assert [row.line for row in world.rows(pools)] == [253, 257]
    dedicated = world.queue.open_lease(Pool.DEDICATED, "d")
    assert numbers(world.queue.claim(dedicated, Pool.DEDICATED, 9)) == list(range(253, 261))
    assert world.escalate(batch, 999) == 250
    assert world.row(batch).escalated == 258


def test_given_back_requests_are_the_end_of_runs(world: World) -> None:
    batch = fill(world, 20)
    assert world.escalate(batch, 20) == 20
    assert world.apply(Plan(returns=(Move(batch, 3),))).returned == 3
    assert numbers(world.queue.claim(_spot_lease(world), Pool.SPOT, 9)) == [18, 19, 20]
    assert _queued(world) == [list(range(1, 18))]
    assert world.row(batch).escalated == 17


def test_revocation_takes_the_end_of_a_partly_settled_run(world: World) -> None:
    batch = fill(world, 12)
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 12)
    assert _settle(world, lease, [claims[0], claims[9]]) == 2
    assert world.apply(Plan(revocations=(Move(batch, 3),))).revoked == 3
    assert _runs(world, "claimed_runs") == [(1, [2, 3, 4, 5, 6, 7, 8])]
    assert _queued(world) == [[9, 11, 12]]
    (run,) = world.rows("SELECT pool, escalated, attempts, interruptions FROM queued_runs")
    assert tuple(run) == ("dedicated", True, 0, 1)
    row = world.row(batch)
    assert (row.interrupted, row.escalated) == (3, 3)
    dedicated = world.queue.open_lease(Pool.DEDICATED, "d")
    again = world.queue.claim(dedicated, Pool.DEDICATED, 9)
    assert numbers(again) == [9, 11, 12]
    assert _settle(world, lease, claims) == 7
    assert _settle(world, dedicated, again) == 3
    assert world.lines("results", batch) == list(range(1, 13))
    assert world.drained(batch) == 1


def test_cancelled_batch_drops_the_rest_of_its_runs(world: World) -> None:
    batch = fill(world, 200)
    lease = _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 50)
    assert _settle(world, lease, claims[10:20]) == 10
    world.cancel(batch)
    assert _queued(world) == []
    world.queue.settle(lease, [done(claims[0])], _returned(claims[1:5], failed=True))
    assert world.lines("claims", batch) == [*range(6, 11), *range(21, 51)]
    world.sweep(cancel_grace=0)
    assert (world.lines("claims", batch), world.drained(batch)) == ([], 1)
    assert world.lines("results", batch) == [1, *range(11, 21)]

"""Marks: a claim continues where the last one ended, skips no request for good and rereads none."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.core.runs import RUN_LINES
from lowtide.planning.escalation import Move, Plan
from lowtide.queue import claiming
from lowtide.queue.claiming import LANES, TAKE
from lowtide.queue.claims import Claim, Returned
from lowtide.queue.draining import NOTHING_QUEUED
from tests.loads import fill, pages_read
from tests.worlds import World, numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.core.ids import BatchId, LeaseId

MANY = 50_000
START = "-infinity"


@pytest.fixture
def always_loads_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Advance the clock so far between claims that each claim loads the lanes."""
    clock = count(0, 100)
    monkeypatch.setattr(claiming, "monotonic", lambda: float(next(clock)))


def _spot_lease(world: World) -> LeaseId:
    return world.queue.open_lease(Pool.SPOT, "w")


def _mark(world: World, lease: LeaseId, batch: BatchId) -> int:
    """Return the first line of the last run that a worker has claimed of a batch."""
    return world.queue._claiming[lease].marks[batch].line


def _release(world: World, lease: LeaseId, claims: Sequence[Claim], delay: float = 0.0) -> None:
    released = [Returned(each.batch, each.line, "", delay, failed=True) for each in claims]
    assert world.queue.settle(lease, [], released).returned == len(claims)


def test_claim_continues_after_mark(world: World) -> None:
    batch, lease = fill(world, 300), _spot_lease(world)
    assert numbers(world.queue.claim(lease, Pool.SPOT, 10)) == list(range(1, 11))
    assert _mark(world, lease, batch) == 1
    # What is left of a run starts after the mark, as do all later runs.
    assert numbers(world.queue.claim(lease, Pool.SPOT, 10)) == list(range(11, 21))
    assert _mark(world, lease, batch) == 11
    assert numbers(world.queue.claim(lease, Pool.SPOT, 200)) == list(range(21, 221))
    assert _mark(world, lease, batch) == 129
    assert numbers(world.queue.claim(lease, Pool.SPOT, 200)) == list(range(221, 301))


def test_run_locked_when_mark_passed_is_claimed_later(world: World) -> None:
    fill(world, 4 * RUN_LINES)
    lease, other = _spot_lease(world), world.own_engine("worker")
    with other.connect() as connection:
        connection.execute(text("SELECT FROM queued_runs WHERE line = 1 FOR UPDATE"))
        assert numbers(world.queue.claim(lease, Pool.SPOT, 100)) == list(range(129, 229))
        connection.rollback()
    assert numbers(world.queue.claim(lease, Pool.SPOT, 100)) == list(range(229, 329))
    claims = [request for _ in range(4) for request in world.queue.claim(lease, Pool.SPOT, 100)]
    assert numbers(claims) == [*range(329, 513), *range(1, 129)]


@pytest.mark.usefixtures("always_loads_lanes")
def test_skipped_run_precedes_rest_of_tenants_later_batch(world: World) -> None:
    early, late = fill(world, 2 * RUN_LINES, due_in=5000), fill(world, 1000, due_in=6000)
    lease, other = _spot_lease(world), world.own_engine("worker")
    with other.connect() as connection:
        connection.execute(
            text("SELECT FROM queued_runs WHERE batch_id = :batch AND line = 1 FOR UPDATE"),
            {"batch": early},
        )
        claims = world.queue.claim(lease, Pool.SPOT, RUN_LINES)
        assert [(each.batch, each.line) for each in claims] == [
            (early, line) for line in range(RUN_LINES + 1, 2 * RUN_LINES + 1)
        ]
        connection.rollback()
    assert {each.batch for each in world.queue.claim(lease, Pool.SPOT, 5)} == {late}
    claims = world.queue.claim(lease, Pool.SPOT, 200)
    assert [(each.batch, each.line) for each in claims] == [
        *[(early, line) for line in range(1, RUN_LINES + 1)],
        *[(late, line) for line in range(6, 78)],
    ]


def test_released_requests_queue_after_mark(world: World) -> None:
    batch, lease = fill(world, 20), _spot_lease(world)
    claims = world.queue.claim(lease, Pool.SPOT, 10)
    _release(world, lease, claims[:3])
    assert numbers(world.queue.claim(lease, Pool.SPOT, 12)) == [*range(11, 21), 1, 2]
    assert _mark(world, lease, batch) == 1
    assert numbers(world.queue.claim(lease, Pool.SPOT, 12)) == [3]


def test_requests_whose_delay_ended_queue_after_mark(world: World) -> None:
    fill(world, 20)
    lease = _spot_lease(world)
    _release(world, lease, world.queue.claim(lease, Pool.SPOT, 5), delay=3600)
    assert numbers(world.queue.claim(lease, Pool.SPOT, 10)) == list(range(6, 16))
    world.run("UPDATE queued_runs SET available_at = now() WHERE line <= 5")
    assert numbers(world.queue.claim(lease, Pool.SPOT, 10)) == [*range(16, 21), *range(1, 6)]


def test_requests_lost_or_released_by_others_queue_after_mark(world: World) -> None:
    fill(world, 20)
    lost, closed, lease = (_spot_lease(world) for _ in range(3))
    world.queue.claim(lost, Pool.SPOT, 2)
    world.queue.claim(closed, Pool.SPOT, 2)
    assert numbers(world.queue.claim(lease, Pool.SPOT, 6)) == list(range(5, 11))
    world.expire_lease(lost)
    assert world.sweep() == 2
    world.queue.close_lease(closed)
    assert numbers(world.queue.claim(lease, Pool.SPOT, 14)) == [*range(11, 21), 1, 2, 3, 4]


def test_moved_requests_queue_after_marks_of_both_pools(world: World) -> None:
    batch = fill(world, 20)
    spot, dedicated = _spot_lease(world), world.queue.open_lease(Pool.DEDICATED, "w")
    assert numbers(world.queue.claim(spot, Pool.SPOT, 5)) == [1, 2, 3, 4, 5]
    assert world.escalate(batch, 4) == 4
    assert numbers(world.queue.claim(dedicated, Pool.DEDICATED, 1)) == [17]
    assert _mark(world, dedicated, batch) == 17
    assert world.escalate(batch, 2) == 2
    assert numbers(world.queue.claim(dedicated, Pool.DEDICATED, 4)) == [18, 19, 20, 15]
    # Request 16 returns to spot, whose worker has its mark at 5.
    assert world.apply(Plan(returns=(Move(batch, 4),))).returned == 1
    assert numbers(world.queue.claim(spot, Pool.SPOT, 20)) == [*range(6, 15), 16]


def test_revoked_requests_queue_after_dedicated_mark(world: World) -> None:
    batch = fill(world, 6)
    spot, dedicated = _spot_lease(world), world.queue.open_lease(Pool.DEDICATED, "w")
    world.escalate(batch, 2)
    assert numbers(world.queue.claim(spot, Pool.SPOT, 4)) == [1, 2, 3, 4]
    assert numbers(world.queue.claim(dedicated, Pool.DEDICATED, 1)) == [5]
    assert world.apply(Plan(revocations=(Move(batch, 4),))).revoked == 4
    assert numbers(world.queue.claim(dedicated, Pool.DEDICATED, 9)) == [6, 1, 2, 3, 4]


def _claim_parameters(
    lease: LeaseId, batch: BatchId, at: object = START, line: int = 0
) -> dict[str, object]:
    lanes = [{"batch": str(batch), "at": str(at), "line": line}]
    return {
        "lease": lease,
        "fleet": DEFAULT_FLEET,
        "pool": "spot",
        "shares": json.dumps([{"lines": 50, "lanes": lanes}]),
    }


def test_requests_in_backoff_are_not_read(world: World) -> None:
    """An index scan ends at the first request in backoff; each of them is a run of its own."""
    waiting, other = fill(world, MANY, delay=3600), fill(world, 50)
    world.split_runs()
    lease = _spot_lease(world)
    alone = pages_read(world.worker, TAKE, **_claim_parameters(lease, other))
    assert pages_read(world.worker, TAKE, **_claim_parameters(lease, waiting)) < alone
    world.run(
        "UPDATE queued_runs SET available_at = now() WHERE batch_id = :b AND line <= 50", b=waiting
    )
    assert pages_read(world.worker, TAKE, **_claim_parameters(lease, waiting)) < alone + 50
    assert (
        pages_read(
            world.worker, LANES[Pool.SPOT], fleet=DEFAULT_FLEET, pool="spot", most=100, without=[]
        )
        < 50
    )


def test_mark_skips_index_entries_of_deleted_requests(world: World) -> None:
    """An open snapshot, such as that of a backup, keeps vacuum from removing the entries."""
    batch = fill(world, MANY)
    world.split_runs()
    lease = _spot_lease(world)
    with world.own_engine("worker").connect() as pinning:
        pinning.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        pinning.execute(text("SELECT count(*) FROM workers"))
        fresh = pages_read(world.worker, TAKE, **_claim_parameters(lease, batch))
        world.run("DELETE FROM queued_runs WHERE line <= :lines", lines=MANY - 100)
        at = world.value("SELECT min(available_at) FROM queue")
        from_start = pages_read(world.worker, TAKE, **_claim_parameters(lease, batch))
        from_mark = pages_read(
            world.worker, TAKE, **_claim_parameters(lease, batch, at, MANY - 100)
        )
        place = {
            "id": str(batch),
            "fleet": DEFAULT_FLEET,
            "pool": "spot",
            "at": str(at),
            "line": MANY - 100,
        }
        drained_from_mark = pages_read(world.worker, NOTHING_QUEUED, batches=json.dumps([place]))
        drained_from_start = pages_read(
            world.worker, NOTHING_QUEUED, batches=json.dumps([{"id": str(batch)}])
        )
    assert from_start > fresh + 300
    assert from_mark < fresh + 100
    assert drained_from_mark < 50 < drained_from_start / 5

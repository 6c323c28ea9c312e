"""Priorities order a tenant's claims where deadlines hold, and take nothing from other tenants."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest

from lowtide.core.pools import Pool
from lowtide.planning.demand import Capacity
from lowtide.planning.escalation import Plan
from lowtide.planning.state import decide
from lowtide.queue.claiming import LANES_A_TENANT
from tests.loads import fill
from tests.worlds import World, done

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId, LeaseId

HOUR = 3600.0
MANY = LANES_A_TENANT + 20
STEP = timedelta(minutes=2)
TICKED = Capacity(1 / 6, 1, cold_start=60.0, margin=30.0, tick=STEP.total_seconds())


def _claimed(world: World, requests: int, pool: Pool = Pool.SPOT) -> list[BatchId]:
    """Return the batches of a new worker's first claim."""
    lease = world.queue.open_lease(pool, "w")
    return [claim.batch for claim in world.queue.claim(lease, pool, requests)]


def _tighten(world: World, *batches: BatchId) -> None:
    rows = world.rows(
        "SELECT deadline FROM batches WHERE id = ANY(:ids) ORDER BY 1", ids=list(batches)
    )
    world.apply(Plan(tight=[row.deadline for row in rows]))


def test_higher_priority_is_claimed_first_whatever_its_deadline(world: World) -> None:
    early, late = fill(world, 1, due_in=2 * HOUR), fill(world, 1, due_in=3 * HOUR)
    least = fill(world, 1, due_in=HOUR, priority=-1)
    urgent, also = (fill(world, 1, due_in=20 * HOUR + n, priority=5) for n in (1, 0))
    assert _claimed(world, 5) == [also, urgent, early, late, least]


def test_batches_of_tenants_share_spot_as_without_priorities(world: World) -> None:
    theirs = fill(world, 100, tenant=world.tenant("other"), due_in=20 * HOUR)
    mine = [fill(world, 40, due_in=20 * HOUR, priority=n) for n in (0, 10)]
    claims = _claimed(world, 60)
    assert [claims.count(each) for each in (theirs, *mine)] == [30, 0, 30]


def test_batch_that_waits_for_another_takes_no_turn_of_a_more_urgent_tenant(world: World) -> None:
    waiting = fill(world, 5, due_in=0.5 * HOUR)
    urgent = fill(world, 5, due_in=20 * HOUR, priority=1)
    other = fill(world, 5, due_in=2 * HOUR, tenant=world.tenant("other"))
    assert _claimed(world, 15) == [*[other] * 5, *[urgent] * 5, *[waiting] * 5]


@pytest.mark.parametrize(("many", "one"), [(0, 10), (-5, 0)])
def test_many_earlier_deadlines_do_not_hide_a_higher_priority(
    world: World, many: int, one: int
) -> None:
    for _ in range(MANY):
        fill(world, 1, due_in=2 * HOUR, priority=many)
    urgent = fill(world, 2, due_in=20 * HOUR, priority=one)
    assert _claimed(world, 2) == [urgent, urgent]


def test_many_higher_priorities_do_not_hide_a_tight_deadline(world: World) -> None:
    tight = fill(world, 2, due_in=2 * HOUR, priority=-10)
    for _ in range(MANY):
        fill(world, 1, due_in=20 * HOUR, priority=10)
    assert tight not in _claimed(world, 2)
    _tighten(world, tight)
    assert _claimed(world, 2) == [tight, tight]


def test_work_due_by_a_tight_deadline_keeps_its_priorities(world: World) -> None:
    first, second = fill(world, 1, due_in=2 * HOUR), fill(world, 1, due_in=3 * HOUR, priority=1)
    tight = fill(world, 1, due_in=4 * HOUR, priority=-1)
    later = fill(world, 1, due_in=20 * HOUR, priority=10)
    _tighten(world, tight)
    assert _claimed(world, 4) == [second, first, tight, later]


def test_dedicated_serves_the_earliest_deadline_whatever_the_priorities(world: World) -> None:
    for _ in range(MANY):
        fill(world, 1, due_in=20 * HOUR, priority=10, pool="dedicated")
    early = fill(world, 2, due_in=2 * HOUR, priority=-10, pool="dedicated")
    assert _claimed(world, 2, Pool.DEDICATED) == [early, early]


def test_tick_writes_nothing_for_tenants_without_priorities(world: World) -> None:
    batch = fill(world, 1)
    prioritized = fill(world, 1, priority=3, tenant=world.tenant("other"))
    read = partial(world.value, "SELECT xmin::text FROM batches WHERE id = :id")
    before = read(id=batch), read(id=prioritized)
    _tighten(world, batch, prioritized)
    after = read(id=batch), read(id=prioritized)
    assert after[0] == before[0]
    assert after[1] != before[1]
    _tighten(world, batch, prioritized)
    assert (read(id=batch), read(id=prioritized)) == after


def test_barriers_go_with_the_last_priority(world: World) -> None:
    ordinary, urgent = fill(world, 1, due_in=HOUR), fill(world, 1, priority=3)
    _tighten(world, ordinary)
    barrier = "SELECT barrier = deadline FROM batches WHERE id = :id"
    assert world.value(barrier, id=ordinary) is True
    world.cancel(urgent)
    _tighten(world, ordinary)
    assert world.value(barrier, id=ordinary) is None


def _pass_time(world: World) -> None:
    world.run(
        "UPDATE batches SET deadline = deadline - cast(:step AS interval), "
        "barrier = barrier - cast(:step AS interval)",
        step=STEP,
    )


def _run(world: World, lease: LeaseId, requests: int) -> list[BatchId]:
    claims = world.queue.claim(lease, Pool.SPOT, requests)
    world.queue.settle(lease, [done(claim) for claim in claims], [])
    return [claim.batch for claim in claims]


def test_low_priority_ends_in_time_on_spot_while_urgent_work_keeps_arriving(world: World) -> None:
    """Spot and dedicated each run 20 requests between two ticks; 30 urgent ones arrive."""
    low = fill(world, 120, due_in=HOUR)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    turns: list[int] = []
    while sum(turns) < 120:
        fill(world, 30, priority=5)
        world.timetable.replan(lambda state: decide(state, TICKED))
        world.queue._claiming.clear()
        turns.append(_run(world, lease, 20).count(low))
        _pass_time(world)
        assert world.value("SELECT deadline > now() FROM batches WHERE id = :id", id=low)
    assert turns[:15] == [0] * 15
    assert world.value("SELECT count(*) FROM results WHERE pool = 'dedicated'") == 0
    assert world.row(low).escalated == 0

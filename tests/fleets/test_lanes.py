"""Lanes of the queue: a batch of several fleets, whose workers, pauses and plans are apart."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.batches.forecast import WorkloadStore
from lowtide.batches.workload import FleetCapacity
from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.core.pools import Pool
from lowtide.files.index import FileSegment, render_rows
from lowtide.files.lines import InputLine
from lowtide.fleets.placement import BatchPart, Placement
from lowtide.fleets.store import FleetStore
from lowtide.pipeline.split_store import Index
from lowtide.planning.demand import Capacity, PoolScale
from lowtide.planning.escalation import Move, Plan
from lowtide.planning.fallback import FleetMove, fall_back
from lowtide.planning.state import SchedulerState, decide
from lowtide.queue.store import QueueStore
from tests.fleets.single import SINGLE
from tests.scheduler.test_pools_store import pause_store
from tests.worlds import PRICES, done

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId
    from lowtide.planning.state import PlanResult
    from tests.worlds import World

# Every third request is of the large model.
LINES, LARGE = 30, 10
SPREAD = Placement(
    None,
    (BatchPart("small", LINES - LARGE, "s"), BatchPart("large", LARGE, "l")),
    ("small", "large"),
)
OF_LARGE = [line for line in range(1, LINES + 1) if line % 3 == 0]
OF_SMALL = [line for line in range(1, LINES + 1) if line % 3]
INDEX = (("s", LINES - LARGE), ("l", LARGE))


def _rows(first: int, last: int) -> bytes:
    return render_rows(
        [
            InputLine(line, str(line), line * 100, 90, 1, int(line % 3 == 0))
            for line in range(first, last + 1)
        ]
    )


def _store(world: World, fleet: str) -> QueueStore:
    return QueueStore(world.worker, new_id=new_id, lease_duration=30.0, fleet=fleet)


def _batch(world: World, *, segments: int = 1, due_in: float = 86_400) -> BatchId:
    """Create a mixed batch, with its first segment split; both fleets have had a worker."""
    for fleet in ("small", "large"):
        store = _store(world, fleet)
        store.close_lease(store.open_lease(Pool.SPOT, "w"))
    batch = world.new_batch(deadline=world.value("SELECT now()") + timedelta(seconds=due_in))
    each = LINES // segments
    rows = [_rows(n * each + 1, (n + 1) * each) for n in range(segments)]
    index = Index(INDEX, [FileSegment(each, 0, len(part)) for part in rows])
    with world.opened(batch, index) as split:
        assert split is not None
        split.copy([rows[0]])
        assert split.start(index, SPREAD, PRICES) is not None
    return batch


def _claim(world: World, fleet: str, pool: Pool = Pool.SPOT, lines: int = 100) -> list[int]:
    store = _store(world, fleet)
    lease = store.open_lease(pool, "w")
    claims = store.claim(lease, pool, lines)
    store.settle(lease, [done(claim) for claim in claims], [])
    return sorted(claim.line for claim in claims)


def _parts(world: World, batch: BatchId) -> dict[str, tuple[int, int]]:
    sql = "SELECT fleet, lines, split FROM batch_parts WHERE batch_id = :batch"
    return {row.fleet: (row.lines, row.split) for row in world.rows(sql, batch=batch)}


def test_each_fleet_runs_requests_of_its_own_models(world: World) -> None:
    batch = _batch(world)
    assert _parts(world, batch) == {"small": (20, 20), "large": (10, 10)}
    row = world.row(batch)
    assert (row.total, row.model, row.fleet) == (LINES, None, None)
    assert _claim(world, "large") == OF_LARGE
    assert world.drained(batch) == 0
    assert _claim(world, "large") == []
    assert _claim(world, "other") == []
    assert _claim(world, "small") == OF_SMALL
    assert world.drained(batch) == 1


def test_later_segments_go_to_the_same_fleets(world: World) -> None:
    batch = _batch(world, segments=2)
    assert _parts(world, batch) == {"small": (20, 10), "large": (10, 5)}
    with world.splits.open_segment(batch, 2) as split:
        assert split is not None
        split.copy([_rows(16, 30)])
        assert split.finish()
    assert _parts(world, batch) == {"small": (20, 20), "large": (10, 10)}
    assert _claim(world, "large") == OF_LARGE
    assert _claim(world, "small") == OF_SMALL


def test_pause_stops_claims_of_one_fleet(world: World) -> None:
    batch = _batch(world)
    pause_store(world).pause(Pool.SPOT, "ana", "large")
    assert _claim(world, "large") == []
    assert _claim(world, "small") == OF_SMALL
    paused = {
        (each.fleet, each.pool) for each in pause_store(world).standings() if each.pause is not None
    }
    assert paused == {("large", Pool.SPOT)}
    pause_store(world).resume(Pool.SPOT, "ana", "large")
    assert _claim(world, "large") == OF_LARGE
    assert world.drained(batch) == 1


def test_released_and_lost_requests_stay_in_their_fleet(world: World) -> None:
    batch = _batch(world)
    large = _store(world, "large")
    closing, dying = (large.open_lease(Pool.SPOT, name) for name in ("closing", "dying"))
    assert len(large.claim(closing, Pool.SPOT, 4)) == 4
    assert len(large.claim(dying, Pool.SPOT, 4)) == 4
    large.close_lease(closing)
    world.expire_lease(dying)
    assert world.sweep() == 4
    assert _claim(world, "small") == OF_SMALL
    assert _claim(world, "large") == OF_LARGE
    assert world.drained(batch) == 1


def _states(world: World, plans: dict[str, Plan]) -> dict[str, SchedulerState]:
    """Apply the plans of these fleets; return the states before."""
    states: dict[str, SchedulerState] = {}

    def plan(state: SchedulerState) -> Plan:
        states[state.fleet] = state
        return plans.get(state.fleet, Plan())

    assert world.timetable.replan(plan) is not None
    return states


def test_plans_move_requests_of_their_fleet(world: World) -> None:
    batch = _batch(world)
    states = _states(world, {"large": Plan(escalations=(Move(batch, 4),), replicas=2)})
    assert {name: [each.spot for each in state.batches] for name, state in states.items()} == {
        "default": [], "large": [10], "small": [20],
    }  # fmt: skip
    states = _states(world, {})
    (part,) = states["large"].batches
    assert (part.spot, part.dedicated, len(states["large"].wished)) == (6, 4, 2)
    assert (states["small"].batches[0].dedicated, states["small"].wished) == (0, ())
    assert _claim(world, "large", Pool.DEDICATED) == OF_LARGE[6:]
    assert _claim(world, "small", Pool.DEDICATED) == []


def test_fleet_without_capacity_endangers_the_whole_batch_alone(world: World) -> None:
    mixed = _batch(world, due_in=600)
    other = world.batch(5, due_in=600)
    ample = Capacity(rate=10.0, replicas=2, cold_start=0.0, margin=0.0, tick=10.0)
    none = Capacity(rate=10.0, replicas=0, cold_start=0.0, margin=0.0, tick=10.0)
    assert world.timetable.replan(
        lambda state: decide(state, none if state.fleet == "large" else ample)
    )
    assert (world.row(mixed).at_risk, world.row(mixed).risk_reason) == (True, "no_dedicated")
    assert not world.row(other).at_risk


def test_end_of_a_batch_is_that_of_its_last_part(world: World) -> None:
    batch = world.batches.get(DEFAULT_TENANT, _batch(world))
    for fleet in ("small", "large"):
        _store(world, fleet).open_lease(Pool.SPOT, "w")
    capacities = {
        fleet: FleetCapacity(Capacity(rate, 0, 0.0, 0.0, 10.0), PoolScale(5, 1))
        for fleet, rate in (("small", 2.0), ("large", 0.5))
    }
    workloads = WorkloadStore(world.api).read()
    assert workloads.fleets_of(batch) == ("large", "small")
    forecast = workloads.forecast(batch, capacities)
    assert forecast is not None
    assert forecast.likely is not None
    assert (forecast.likely - workloads.at).total_seconds() == pytest.approx(10 / 0.5, rel=0.2)
    assert workloads.last_fleet(batch, capacities) == "large"


def test_limit_of_running_requests_counts_all_fleets(world: World) -> None:
    _batch(world)
    limit = text("UPDATE tenants SET max_running_lines = :limit")
    owner = world.database.engine("owner")
    with owner.begin() as connection:
        connection.execute(limit, {"limit": 12})
    claimed = []
    try:
        for fleet in ("large", "small"):
            store = _store(world, fleet)
            claimed.append(len(store.claim(store.open_lease(Pool.SPOT, "w"), Pool.SPOT, 100)))
    finally:
        with owner.begin() as connection:
            connection.execute(limit, {"limit": None})
    assert claimed == [10, 2]


def test_undeclared_fleet_keeps_its_requests(world: World) -> None:
    batch = _batch(world)
    FleetStore(world.worker).mirror(SINGLE)
    specs = {row.name: row.spec for row in world.rows("SELECT name, spec FROM fleets")}
    assert specs["large"] is None
    assert specs["default"]["models"] == ["*"]
    assert _states(world, {})["large"].batches[0].id == batch


def _fall_back(world: World, batch: BatchId, source: str, target: str, lines: int) -> PlanResult:
    moves = [FleetMove(batch, source, target, lines)]
    results = world.timetable.replan(lambda _: Plan(), lambda _states, _plans: moves)
    assert results is not None
    assert (results[source].fell_back, results[target].joined) == (lines, lines)
    return results[source]


def test_batch_of_one_fleet_falls_back_to_another(world: World) -> None:
    _batch(world)
    batch = world.batch(10)
    world.escalate(batch, 3)
    result = _fall_back(world, batch, "default", "large", 8)
    assert result.waiting == {Pool.SPOT: 0, Pool.DEDICATED: 2}
    assert _parts(world, batch) == {"default": (2, 2), "large": (8, 8)}
    row = world.row(batch)
    assert (row.fleet, row.model, row.escalated) == (None, "m", 11)
    event = world.rows("SELECT lines, reason, detail FROM request_events ORDER BY id")[-1]
    assert tuple(event) == (8, "fallback", "large")
    assert len(_claim(world, "large", Pool.DEDICATED)) == 8
    assert world.drained(batch) == 0
    assert len(_claim(world, "default", Pool.DEDICATED)) == 2
    assert world.drained(batch) == 1


def test_part_of_a_batch_falls_back_to_a_fleet_that_runs_another(world: World) -> None:
    batch = _batch(world)
    _fall_back(world, batch, "large", "small", 4)
    _fall_back(world, batch, "large", "small", 1)
    assert _parts(world, batch) == {"large": (5, 5), "small": (25, 25)}
    (part,) = _states(world, {})["small"].batches
    assert (part.spot, part.dedicated) == (20, 5)
    assert _claim(world, "small", Pool.DEDICATED) == OF_LARGE[5:]
    assert _claim(world, "small") == OF_SMALL
    assert _claim(world, "large") == OF_LARGE[:5]
    assert world.drained(batch) == 1


def test_tick_moves_what_a_fleet_cannot_hold(world: World) -> None:
    batch = world.batch(150, due_in=100)
    _store(world, "cpu").open_lease(Pool.SPOT, "w")
    one = Capacity(rate=1.0, replicas=1, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)
    ten = Capacity(rate=1.0, replicas=10, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)
    capacities = {"default": one, "cpu": ten}

    def tick() -> None:
        assert world.timetable.replan(
            lambda state: decide(state, capacities[state.fleet]),
            lambda states, plans: fall_back(states, plans, capacities, {"default": "cpu"}),
        )

    tick()
    moved = _parts(world, batch)["cpu"][0]
    assert 50 <= moved <= 60
    assert world.row(batch).at_risk
    tick()
    assert not world.row(batch).at_risk
    assert _parts(world, batch)["cpu"][0] <= moved + 2

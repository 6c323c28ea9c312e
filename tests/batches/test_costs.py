"""The cost of a batch: its replica seconds at the prices of the fleets that spent them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.core.pools import Cost
from lowtide.fleets.model import Fleets
from lowtide.fleets.store import FleetStore
from lowtide.planning.escalation import Plan
from lowtide.planning.fallback import FleetMove
from tests.fleets.test_placement import fleet

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId
    from tests.worlds import World

HOUR = 3600.0


def _spend(world: World, batch: BatchId, pool: str, seconds: float, fleet: str = "default") -> None:
    world.run(
        "INSERT INTO tallies (batch_id, fleet, pool, lease_id, tenant_id, replica_seconds) "
        "VALUES (:batch, :fleet, :pool, :lease, :tenant, :seconds)",
        batch=batch,
        fleet=fleet,
        pool=pool,
        lease=new_id(),
        tenant=DEFAULT_TENANT,
        seconds=seconds,
    )


def _cost(world: World, batch: BatchId) -> Cost:
    return world.batches.get(DEFAULT_TENANT, batch).cost


@pytest.mark.parametrize(
    ("spot", "dedicated", "by_pool", "all_dedicated", "saving"),
    [
        pytest.param((), (), (0, 0), 0, 0, id="nothing ran"),
        pytest.param((0.75, 0.25), (), (1, 0), 3, 2 / 3, id="spot alone"),
        pytest.param((), (1,), (0, 3), 3, 0, id="dedicated alone"),
        pytest.param((0.5,), (0.25,), (0.5, 0.75), 2.25, 4 / 9, id="both"),
    ],
)
def test_cost_by_pool_and_saving(
    world: World,
    spot: tuple[float, ...],
    dedicated: tuple[float, ...],
    by_pool: tuple[float, float],
    all_dedicated: float,
    saving: float,
) -> None:
    batch = world.batch(2)
    for pool, hours in (("spot", spot), ("dedicated", dedicated)):
        for each in hours:
            _spend(world, batch, pool, each * HOUR)
    cost = _cost(world, batch)
    assert cost.currency == "USD"
    assert (cost.spot, cost.dedicated) == pytest.approx(by_pool)
    assert cost.total == pytest.approx(sum(by_pool))
    assert cost.all_dedicated == pytest.approx(all_dedicated)
    assert cost.saving == pytest.approx(saving)


def test_saving_is_negative_if_spot_costs_more_and_zero_without_prices() -> None:
    assert Cost("EUR", 4.0, 0.0, 2.0).saving == -1
    assert Cost("EUR", 0.0, 0.0, 0.0).saving == 0


def test_requests_that_fell_back_cost_what_their_new_fleet_does(world: World) -> None:
    large, other = fleet("large", "m", price=10.0), fleet("default", "n", price=9.0)
    FleetStore(world.worker).mirror(Fleets((large, other)))
    batch = world.batch(10)
    _spend(world, batch, "spot", HOUR)
    moves = [FleetMove(batch, "default", "large", 4)]
    assert world.timetable.replan(lambda _: Plan(), lambda _states, _plans: moves) is not None
    _spend(world, batch, "dedicated", HOUR, fleet="large")
    # 1 and 3 are the prices that the batch was created with; those of large are 10 and 30.
    assert _cost(world, batch) == Cost("USD", 1.0, 30.0, 33.0)
    FleetStore(world.worker).mirror(Fleets((fleet("large", "m", price=99.0), other)))
    assert _cost(world, batch) == Cost("USD", 1.0, 30.0, 33.0)


def test_parts_without_prices_cost_what_their_batch_did(world: World) -> None:
    """Batches of before the prices of parts keep their cost."""
    batch = world.batch(3)
    world.run("UPDATE batches SET fleet = NULL WHERE id = :batch", batch=batch)
    world.run(
        "INSERT INTO batch_fleets (batch_id, fleet, tenant_id, lines, split, spot_price, dedicated_price) "
        "VALUES (:batch, 'a', :tenant, 2, 2, NULL, NULL), (:batch, 'b', :tenant, 1, 1, 5, 6)",
        batch=batch,
        tenant=DEFAULT_TENANT,
    )
    _spend(world, batch, "spot", HOUR, fleet="a")
    _spend(world, batch, "spot", HOUR, fleet="b")
    assert _cost(world, batch) == Cost("USD", 6.0, 0.0, 9.0)

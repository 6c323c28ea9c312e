"""Measured rates: workers report samples, ticks fold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from lowtide.planning.demand import Rate, RateSample
from lowtide.queue.rates import ConcurrencyStore, RateStore
from tests.worlds import together

if TYPE_CHECKING:
    from lowtide.core.ids import LeaseId
    from tests.worlds import World


@pytest.fixture
def rates(world: World) -> RateStore:
    return RateStore(world.worker)


def _busy(world: World, pool: Pool = Pool.DEDICATED, requests: int = 1) -> LeaseId:
    """Return the lease of a worker that runs requests."""
    lease = world.queue.open_lease(pool, "w")
    assert world.queue.claim(lease, pool, requests)
    return lease


def test_reported_sample_is_folded_once(world: World, rates: RateStore) -> None:
    world.batch(1, pool="dedicated")
    lease = _busy(world)
    assert rates.fold() == {}
    rates.report(lease, RateSample(30, 10.0))
    expected = {(DEFAULT_FLEET, Pool.DEDICATED, "m"): Rate().fold([RateSample(30, 10.0)])}
    assert rates.fold() == expected
    assert rates.fold() == expected
    rates.report(lease, RateSample(30, 10.0))
    assert rates.fold() == expected
    rates.report(lease, RateSample(50, 15.0))
    assert rates.fold()[DEFAULT_FLEET, Pool.DEDICATED, "m"] == pytest.approx(
        Rate().fold([RateSample(30, 10.0), RateSample(20, 5.0)])
    )


def test_rate_outlives_its_workers(world: World, rates: RateStore) -> None:
    world.batch(1, pool="dedicated")
    lease = _busy(world)
    rates.report(lease, RateSample(30, 10.0))
    rates.fold()
    world.queue.close_lease(lease)
    rates.report(lease, RateSample(99, 99.0))
    assert rates.fold() == {
        (DEFAULT_FLEET, Pool.DEDICATED, "m"): Rate().fold([RateSample(30, 10.0)])
    }


def test_rates_are_separate_by_pool_and_model(world: World, rates: RateStore) -> None:
    other = world.batch(1, due_in=50)
    world.run("UPDATE batches SET model = 'other' WHERE id = :id", id=other)
    world.batch(1, due_in=60)
    rates.report(_busy(world, Pool.SPOT), RateSample(1, 1.0))
    rates.report(_busy(world, Pool.SPOT), RateSample(2, 1.0))
    rates.report(world.queue.open_lease(Pool.SPOT, "idle now"), RateSample(3, 1.0))
    world.batch(1, pool="dedicated", due_in=50)
    last = world.batch(1, pool="dedicated", due_in=60)
    world.run("UPDATE batches SET model = 'other' WHERE id = :id", id=last)
    rates.report(_busy(world, requests=2), RateSample(4, 1.0))
    assert {key: rate.lines for key, rate in rates.fold().items()} == {
        (DEFAULT_FLEET, Pool.SPOT, "other"): 1.0,
        (DEFAULT_FLEET, Pool.SPOT, "m"): 2.0,
        (DEFAULT_FLEET, Pool.SPOT, ""): 3.0,
        (DEFAULT_FLEET, Pool.DEDICATED, ""): 4.0,
    }


def test_concurrent_folds_count_sample_once(world: World, rates: RateStore) -> None:
    world.batch(1)
    lease = _busy(world, Pool.SPOT)
    for total in range(1, 11):
        rates.report(lease, RateSample(total, float(total)))
        together(rates.fold, rates.fold)
    ((_, rate),) = rates.fold().items()
    assert rate.lines == pytest.approx(Rate().fold([RateSample(1, 1.0)] * 10).lines)


def test_found_concurrency_is_that_of_its_fleet_pool_and_revision(world: World) -> None:
    def store(fleet: str, pool: Pool, revision: str = "") -> ConcurrencyStore:
        return ConcurrencyStore(world.worker, FleetPool(fleet, pool), revision)

    spot = store("a", Pool.SPOT)
    assert spot.read() is None
    spot.record(80)
    spot.record(96)
    store("a", Pool.DEDICATED).record(40)
    store("b", Pool.SPOT, "r1").record(200)
    assert spot.read() == 96
    assert store("a", Pool.DEDICATED).read() == 40
    assert store("b", Pool.SPOT, "r1").read() == 200
    assert store("b", Pool.SPOT, "r2").read() is None
    store("b", Pool.SPOT, "r2").record(50)
    assert store("b", Pool.SPOT, "r1").read() is None

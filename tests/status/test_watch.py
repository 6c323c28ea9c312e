"""The watched snapshot, its samples, and probes."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from lowtide.batches.model import BatchStatus
from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId
from lowtide.core.pools import DEFAULT_FLEET, Depth, FleetPool, Pool, PoolPause
from lowtide.planning.demand import PoolScale
from lowtide.status.snapshot import FleetLoad, LiveWorkers, SystemSnapshot, TenantLoad
from lowtide.status.snapshot_store import SnapshotStore
from lowtide.status.watch import (
    SAMPLE_SECONDS,
    SAMPLES,
    Probe,
    Reachability,
    SystemWatch,
)
from tests.batches.test_batches import example

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
ONE, TWO = BatchId(UUID(int=1)), BatchId(UUID(int=2))
SCALES = {DEFAULT_FLEET: {Pool.SPOT: PoolScale(5, 4), Pool.DEDICATED: PoolScale(10, 2)}}
SPOT, DEDICATED = (FleetPool(DEFAULT_FLEET, pool) for pool in Pool)
NONE = Depth(0, 0)


def snapshot(
    after: float = 0.0,
    tenants: tuple[TenantLoad, ...] = (),
    workers: int = 0,
) -> SystemSnapshot:
    """Return a snapshot taken `after` seconds after NOW."""
    live_workers = {Pool.SPOT: LiveWorkers(workers, NOW)} if workers else {}
    at = NOW + timedelta(seconds=after)
    return SystemSnapshot(at, tenants=tenants, live_workers=live_workers)


def load(
    *,
    spot: Depth = NONE,
    dedicated: Depth = NONE,
    waits: timedelta = timedelta(),
    name: str = "a",
) -> TenantLoad:
    """Return a tenant's load; the oldest queued requests have waited for `waits`."""
    depths = {Pool.SPOT: spot, Pool.DEDICATED: dedicated}
    oldest = {pool: NOW - waits for pool, depth in depths.items() if depth.queued}
    return TenantLoad(DEFAULT_TENANT, name, 1, 0, depths, oldest)


def test_pool_sums_tenants_and_takes_oldest_age() -> None:
    whole = snapshot(
        tenants=(
            load(name="a", spot=Depth(4, 1), waits=timedelta(seconds=5)),
            load(name="b", spot=Depth(4, 1), waits=timedelta(seconds=90)),
            load(name="c", spot=Depth(0, 2)),
        )
    )
    assert whole.depth(Pool.SPOT) == Depth(8, 4)
    assert whole.oldest_age(Pool.SPOT) == 90
    assert whole.oldest_age(Pool.DEDICATED) == 0


class FakeSnapshots(SnapshotStore):
    """Returns the snapshots in turn; None stands for an unreadable database."""

    def __init__(self, *snapshots: SystemSnapshot | None) -> None:
        self.snapshots = deque(snapshots)
        self.down = False

    def check(self) -> None:
        if self.down:
            raise Unavailable("Down.")

    def read(self, *, for_metrics: bool = False) -> SystemSnapshot:  # noqa: ARG002
        snapshot = self.snapshots.popleft()
        if snapshot is None:
            raise Unavailable("No answer.")
        return snapshot


def _watch_after(*snapshots: SystemSnapshot | None) -> SystemWatch:
    watch = _watch(FakeSnapshots(*snapshots))
    for _ in snapshots:
        watch.look()
    return watch


def _watch(source: FakeSnapshots) -> SystemWatch:
    ticks = iter(range(10_000))
    return SystemWatch(source, SCALES, clock=lambda: NOW, timer=lambda: float(next(ticks)))


def test_watch_is_empty_before_first_look() -> None:
    seen = _watch_after().seen
    assert (seen.snapshot, seen.database, seen.problem, seen.samples) == (None, None, None, ())


def test_look_stores_snapshot_and_database_latency() -> None:
    seen = _watch_after(snapshot()).seen
    assert (seen.snapshot, seen.looked_at) == (snapshot(), NOW)
    assert seen.database is not None
    assert (seen.database.reachable, seen.database.latency) == (True, 1.0)


def test_failed_look_keeps_snapshot_and_reports_problem() -> None:
    watch = _watch_after(snapshot(), None)
    assert (watch.seen.snapshot, watch.seen.problem) == (snapshot(), "No answer.")
    assert len(watch.seen.samples) == 1
    assert _watch_after(None).seen.snapshot is None


def test_unreachable_database_is_not_read() -> None:
    source = FakeSnapshots(snapshot(), snapshot(20))
    watch = _watch(source)
    watch.look()
    source.down = True
    watch.look()
    assert (watch.seen.snapshot, watch.seen.problem) == (snapshot(), "Down.")
    assert len(source.snapshots) == 1


def test_samples_keep_their_interval_despite_frequent_looks() -> None:
    seen = _watch_after(*map(snapshot, range(31))).seen
    assert [sample.at.second for sample in seen.samples] == [0, 14, 28]


def test_number_of_samples_is_bounded() -> None:
    seen = _watch_after(*(snapshot(n * SAMPLE_SECONDS) for n in range(SAMPLES + 5))).seen
    assert len(seen.samples) == SAMPLES
    assert (seen.samples[0].at - NOW).total_seconds() == 5 * SAMPLE_SECONDS


QUEUED = (load(spot=Depth(100, 0), dedicated=Depth(100, 0)),)


def _planned(replicas: int | None, tenants: tuple[TenantLoad, ...]) -> SystemSnapshot:
    fleets = {DEFAULT_FLEET: FleetLoad(tenants=tenants, planned=replicas)}
    return replace(snapshot(tenants=tenants), fleets=fleets)


@pytest.mark.parametrize(
    ("planned", "dedicated"), [(None, 2), (2, 2), (1, 1), (0, 1)], ids=["no plan", "2", "1", "0"]
)
def test_dedicated_replicas_do_not_exceed_plan(planned: int | None, dedicated: int) -> None:
    (sample,) = _watch_after(_planned(planned, QUEUED)).seen.samples
    assert sample.pools[DEDICATED].desired == dedicated
    assert sample.pools[SPOT].desired == 4


@pytest.mark.parametrize(("running", "dedicated"), [(0, 0), (9, 1)])
def test_running_requests_keep_their_replica(running: int, dedicated: int) -> None:
    tenants = (load(dedicated=Depth(0, running)),)
    (sample,) = _watch_after(_planned(0, tenants)).seen.samples
    assert sample.pools[DEDICATED].desired == dedicated


def test_paused_pool_desires_no_replicas() -> None:
    pause = PoolPause(Pool.SPOT, NOW, "ana")
    (sample,) = _watch_after(replace(snapshot(tenants=QUEUED), pauses=(pause,))).seen.samples
    assert [sample.pools[place].desired for place in (SPOT, DEDICATED)] == [0, 2]


LARGE = FleetLoad(
    models=("llama-70b",), tenants=(load(spot=Depth(3, 0), dedicated=Depth(40, 0)),), planned=1
)
SMALL = FleetLoad(
    tenants=(load(spot=Depth(6, 0), dedicated=Depth(40, 0)),),
    live_workers={Pool.SPOT: LiveWorkers(2, NOW)},
    planned=4,
)
OLD = FleetLoad(tenants=(load(spot=Depth(9, 0)),))
BY_FLEET = replace(
    snapshot(tenants=(load(spot=Depth(18, 0), dedicated=Depth(80, 0)),), workers=2),
    fleets={"large": LARGE, "old": OLD, "small": SMALL},
    pauses=(PoolPause(Pool.SPOT, NOW, "ana", "large"),),
)
SCALES_BY_FLEET = {
    "large": {Pool.SPOT: PoolScale(5, 4), Pool.DEDICATED: PoolScale(10, 2)},
    "small": {Pool.SPOT: PoolScale(2, 9), Pool.DEDICATED: PoolScale(20, 8)},
}


def test_desired_replicas_are_those_of_each_fleet_added_up() -> None:
    watch = SystemWatch(FakeSnapshots(BY_FLEET), SCALES_BY_FLEET, clock=lambda: NOW)
    watch.look()
    (sample,) = watch.seen.samples
    assert {place.key: (pool.workers, pool.desired) for place, pool in sample.pools.items()} == {
        "large/spot": (0, 0),  # paused
        "large/dedicated": (0, 1),  # planned
        "old/spot": (0, 0),  # nothing scales it
        "old/dedicated": (0, 0),
        "small/spot": (2, 3),
        "small/dedicated": (0, 2),
    }
    assert [watch.desired(pool, BY_FLEET) for pool in Pool] == [3, 3]
    assert [watch.desired(pool, BY_FLEET.of_fleet("small")) for pool in Pool] == [3, 2]


def test_snapshot_of_fleet_has_its_load_and_pauses_alone() -> None:
    large, small = BY_FLEET.of_fleet("large"), BY_FLEET.of_fleet("small")
    assert [each.depth(Pool.SPOT).queued for each in (BY_FLEET, large, small)] == [18, 3, 6]
    assert [each.workers(Pool.SPOT) for each in (BY_FLEET, large, small)] == [2, 0, 2]
    assert (len(large.pauses), len(small.pauses)) == (1, 0)
    assert [small.pause(FleetPool(name, Pool.SPOT)) for name in ("small", "large")] == [None, None]
    assert BY_FLEET.of_fleet("unknown") is BY_FLEET


def test_probe_reports_latency_and_problem() -> None:
    def broken() -> None:
        raise Unavailable("No answer.")

    times = iter([1.0, 1.5, 2.0, 4.0])
    bad, good = (
        Probe(each, clock=lambda: NOW, timer=lambda: next(times)) for each in (broken, lambda: None)
    )
    before = bad.found
    bad.look()
    good.look()
    assert before is None
    assert bad.found == Reachability(NOW, 0.5, "No answer.")
    assert good.found == Reachability(NOW, 2.0)
    assert good.found.reachable


def test_recent_batches_have_an_eta() -> None:
    batch, eta = example(BatchStatus.IN_PROGRESS), NOW + timedelta(hours=1)
    source = FakeSnapshots(replace(snapshot(), recent=(batch,)))
    watch = SystemWatch(
        source, SCALES, clock=lambda: NOW, forecast=lambda batch: replace(batch, eta=eta)
    )
    watch.look()
    assert watch.seen.snapshot is not None
    assert [recent.eta for recent in watch.seen.snapshot.recent] == [eta]

"""The replicas that the portal shows as needed are those that KEDA runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import pytest
import yaml
from sqlalchemy import text

from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.engines.breaker import BreakerState
from lowtide.fleets.parsing import parse
from lowtide.fleets.render import scaler_text
from lowtide.local.autoscaler import Memory, decide, policy
from lowtide.local.manifests import ScaledObject
from lowtide.planning.escalation import Plan
from lowtide.services import scales
from lowtide.settings import Settings
from lowtide.status.snapshot_store import SnapshotStore
from lowtide.status.watch import SystemWatch
from manifests.overlays import ROOT
from tests.scheduler.test_pools_store import pause_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.worlds import World

(FLEET,) = parse(
    "fleets: {default: {models: ['*'], spot: {min_replicas: 2, max_replicas: 4, rows_per_replica: 5}, "
    "dedicated: {min_replicas: 1, max_replicas: 3, rows_per_replica: 10}}}",
    Settings(),
).fleets


def _waiting(world: World) -> None:
    world.batch(16)
    world.batch(21, pool="dedicated")


def _few(world: World) -> None:
    world.batch(1)


def _many(world: World) -> None:
    world.batch(99)
    world.batch(99, pool="dedicated")


def _none_planned(world: World) -> None:
    _many(world)
    world.apply(Plan(replicas=0))


def _planned_long_ago(world: World) -> None:
    _none_planned(world)
    world.run("UPDATE wanted_replicas SET at = now() - interval '61 s'")


def _paused(world: World) -> None:
    _many(world)
    for pool in Pool:
        pause_store(world).pause(pool, "ana")


def _without_engines(world: World) -> None:
    _many(world)
    for _ in range(3):
        lease = world.queue.open_lease(Pool.SPOT, "w")
        world.queue.report_engine(lease, BreakerState.OPEN, "why")


@pytest.mark.parametrize(
    ("build", "replicas"),
    [
        pytest.param(lambda _: None, [2, 1], id="empty"),
        pytest.param(_few, [2, 1], id="below the minimum"),
        pytest.param(_waiting, [4, 3], id="waiting"),
        pytest.param(_many, [4, 3], id="above the maximum"),
        pytest.param(_none_planned, [4, 1], id="none planned"),
        pytest.param(_planned_long_ago, [4, 3], id="planned long ago"),
        pytest.param(_paused, [2, 1], id="paused"),
        pytest.param(_without_engines, [3, 3], id="without engines"),
    ],
)
def test_needed_replicas_are_those_of_the_autoscaler(
    world: World, build: Callable[[World], object], replicas: list[int]
) -> None:
    build(world)
    with world.database.engine("autoscaler").connect() as connection:
        scaled = []
        for pool in Pool:
            document = yaml.safe_load(scaler_text(ROOT, FLEET, pool))
            rules = policy(msgspec.convert(document, ScaledObject))
            value = float(connection.execute(text(rules.query)).scalar_one())
            scaled.append(decide(rules, Memory(), value, 0.0).replicas)
    source = SnapshotStore(world.database.engine("operator"))
    watch = SystemWatch(source, {DEFAULT_FLEET: scales(FLEET)}, clock=lambda: datetime.now(UTC))
    assert scaled == replicas
    assert [watch.desired(pool, source.read()) for pool in Pool] == replicas

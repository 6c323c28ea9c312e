"""KEDA's scaler queries, on the real schema and as the autoscaler role."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from sqlalchemy import text

from lowtide.core.pools import Pool
from lowtide.engines.breaker import BreakerState
from lowtide.planning.demand import desired_replicas
from lowtide.planning.escalation import Plan
from tests.scheduler.test_pools_store import pause_store

if TYPE_CHECKING:
    from tests.worlds import World

KEDA = Path(__file__).parents[2] / "keda"


def keda_replicas(world: World, pool: Pool) -> int:
    """Return the replicas that the HPA derives from the query's result."""
    scaler = yaml.safe_load((KEDA / f"infer-{pool.value}.yaml").read_text())["spec"]
    metadata = scaler["triggers"][0]["metadata"]
    with world.database.engine("autoscaler").connect() as connection:
        rows = connection.execute(text(metadata["query"])).scalar_one()
    target = int(metadata["targetQueryValue"])
    return desired_replicas(rows, target, max_replicas=scaler["maxReplicaCount"])


@pytest.mark.parametrize(
    ("pool", "requests", "replicas"),
    [
        pytest.param(Pool.SPOT, 0, 0, id="spot 0"),
        pytest.param(Pool.SPOT, 1, 1, id="spot 1"),
        pytest.param(Pool.SPOT, 5, 1, id="spot 5"),
        pytest.param(Pool.SPOT, 6, 2, id="spot 6"),
        pytest.param(Pool.SPOT, 99, 4, id="spot max"),
        pytest.param(Pool.DEDICATED, 0, 0, id="dedicated 0"),
        pytest.param(Pool.DEDICATED, 10, 1, id="dedicated 10"),
        pytest.param(Pool.DEDICATED, 11, 2, id="dedicated 11"),
        pytest.param(Pool.DEDICATED, 99, 2, id="dedicated max"),
    ],
)
def test_queued_and_running_requests_set_replicas(
    world: World, pool: Pool, requests: int, replicas: int
) -> None:
    if requests:
        world.batch(requests, pool=pool.value)
    assert keda_replicas(world, pool) == replicas
    lease = world.queue.open_lease(pool, "w")
    world.queue.claim(lease, pool, requests)
    assert keda_replicas(world, pool) == replicas


@pytest.mark.parametrize(
    ("wanted", "replicas"),
    [
        pytest.param(0, 1, id="none, but one stays while requests wait"),
        pytest.param(1, 1, id="one"),
        pytest.param(2, 2, id="two"),
    ],
)
def test_fresh_plan_caps_dedicated_replicas(world: World, wanted: int, replicas: int) -> None:
    world.batch(99, pool="dedicated")
    world.apply(Plan(replicas=wanted))
    assert keda_replicas(world, Pool.DEDICATED) == replicas
    assert keda_replicas(world, Pool.SPOT) == 0
    world.run("UPDATE wanted_replicas SET at = now() - interval '61 s'")
    assert keda_replicas(world, Pool.DEDICATED) == 2
    world.run("DELETE FROM queued_runs")
    world.run("UPDATE wanted_replicas SET at = now(), replicas = 2")
    assert keda_replicas(world, Pool.DEDICATED) == 0


@pytest.mark.parametrize(
    ("pool", "running", "replicas"),
    [
        pytest.param(Pool.SPOT, 0, 0, id="spot: waiting requests do not count"),
        pytest.param(Pool.SPOT, 6, 2, id="spot: running requests keep their workers"),
        pytest.param(Pool.DEDICATED, 0, 0, id="dedicated: waiting requests do not count"),
        pytest.param(
            Pool.DEDICATED, 11, 2, id="dedicated: none wanted, running requests keep their workers"
        ),
    ],
)
def test_paused_pool_keeps_only_busy_workers(
    world: World, pool: Pool, running: int, replicas: int
) -> None:
    world.batch(99, pool=pool.value)
    world.queue.claim(world.queue.open_lease(pool, "w"), pool, running)
    before = keda_replicas(world, pool)
    pause_store(world).pause(pool, "ana")
    world.apply(Plan(replicas=0))
    assert keda_replicas(world, pool) == replicas
    pause_store(world).resume(pool, "ana")
    world.apply(Plan(replicas=2))
    assert keda_replicas(world, pool) == before > 0


def _engines(world: World, pool: Pool, *states: str) -> None:
    """Open one lease per engine state."""
    for state in states:
        lease = world.queue.open_lease(pool, "w")
        world.queue.report_engine(lease, BreakerState(state), "why")


@pytest.mark.parametrize(
    ("states", "replicas"),
    [
        pytest.param(["open"], 1, id="the only worker has no engine"),
        pytest.param(["open", "probing"], 2, id="neither worker has an engine"),
        pytest.param(["open", "closed"], 4, id="one worker has an engine"),
        pytest.param(["open", "starting"], 4, id="one worker is starting"),
        pytest.param(["starting"], 4, id="the only worker is starting"),
        pytest.param([], 4, id="no workers"),
    ],
)
def test_pool_without_engine_gains_no_replicas(
    world: World, states: list[str], replicas: int
) -> None:
    world.batch(99)
    _engines(world, Pool.SPOT, *states)
    assert keda_replicas(world, Pool.SPOT) == replicas
    world.run("UPDATE workers SET expires_at = now()")
    assert keda_replicas(world, Pool.SPOT) == 4


@pytest.mark.parametrize("pool", list(Pool))
def test_one_replica_stays_to_probe_its_engine(world: World, pool: Pool) -> None:
    other = {Pool.SPOT: "dedicated", Pool.DEDICATED: "spot"}[pool]
    world.batch(9, pool=other)
    assert keda_replicas(world, pool) == 0
    _engines(world, pool, "open", "open")
    assert keda_replicas(world, pool) == 1
    pause_store(world).pause(pool, "ana")
    assert keda_replicas(world, pool) == 0
    pause_store(world).resume(pool, "ana")
    world.run("DELETE FROM queued_runs")
    assert keda_replicas(world, pool) == 0

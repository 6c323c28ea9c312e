"""How many replicas KEDA's queries ask for, on the real schema and as the role that runs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from sqlalchemy import text

from lowtide.domain.escalation import Plan
from lowtide.domain.pools import Pool
from lowtide.domain.replicas import desired_replicas
from tests.postgres.test_pools import register

if TYPE_CHECKING:
    from tests.postgres.worlds import World

KEDA = Path(__file__).parents[2] / "keda"


def keda_replicas(world: World, pool: Pool) -> int:
    """Return what the HPA makes of the query's answer."""
    scaler = yaml.safe_load((KEDA / f"infer-{pool.value}.yaml").read_text())["spec"]
    metadata = scaler["triggers"][0]["metadata"]
    with world.database.engine("autoscaler").connect() as connection:
        rows = connection.execute(text(metadata["query"])).scalar_one()
    target = int(metadata["targetQueryValue"])
    return desired_replicas(rows, target, most=scaler["maxReplicaCount"])


@pytest.mark.parametrize(
    ("pool", "lines", "replicas"),
    [
        pytest.param(Pool.SPOT, 0, 0, id="spot 0"),
        pytest.param(Pool.SPOT, 1, 1, id="spot 1"),
        pytest.param(Pool.SPOT, 5, 1, id="spot 5"),
        pytest.param(Pool.SPOT, 6, 2, id="spot 6"),
        pytest.param(Pool.SPOT, 99, 4, id="spot at most"),
        pytest.param(Pool.DEDICATED, 0, 0, id="dedicated 0"),
        pytest.param(Pool.DEDICATED, 10, 1, id="dedicated 10"),
        pytest.param(Pool.DEDICATED, 11, 2, id="dedicated 11"),
        pytest.param(Pool.DEDICATED, 99, 2, id="dedicated at most"),
    ],
)
def test_lines_ask_for_replicas(world: World, pool: Pool, lines: int, replicas: int) -> None:
    if lines:
        world.batch(lines, pool=pool.value)
    assert keda_replicas(world, pool) == replicas
    lease = world.queue.open_lease(pool, "w")
    world.queue.claim(lease, pool, lines)
    assert keda_replicas(world, pool) == replicas


@pytest.mark.parametrize(
    ("wanted", "replicas"),
    [
        pytest.param(0, 1, id="none: what still runs is ended"),
        pytest.param(1, 1, id="one"),
        pytest.param(2, 2, id="two"),
    ],
)
def test_dedicated_gets_no_more_than_is_wanted(world: World, wanted: int, replicas: int) -> None:
    world.batch(99, pool="dedicated")
    world.apply(Plan(replicas=wanted))
    assert keda_replicas(world, Pool.DEDICATED) == replicas
    assert keda_replicas(world, Pool.SPOT) == 0
    world.run("UPDATE wanted_replicas SET at = now() - interval '61 s'")
    assert keda_replicas(world, Pool.DEDICATED) == 2
    world.run("DELETE FROM queue")
    world.run("UPDATE wanted_replicas SET at = now(), replicas = 2")
    assert keda_replicas(world, Pool.DEDICATED) == 0


@pytest.mark.parametrize(
    ("pool", "running", "replicas"),
    [
        pytest.param(Pool.SPOT, 0, 0, id="spot: what waits asks for nothing"),
        pytest.param(Pool.SPOT, 6, 2, id="spot: what runs keeps its workers"),
        pytest.param(Pool.DEDICATED, 0, 0, id="dedicated: what waits asks for nothing"),
        pytest.param(Pool.DEDICATED, 11, 2, id="dedicated: none is wanted, and what runs is ended"),
    ],
)
def test_a_paused_pool_keeps_busy_workers_and_gets_no_others(
    world: World, pool: Pool, running: int, replicas: int
) -> None:
    world.batch(99, pool=pool.value)
    world.queue.claim(world.queue.open_lease(pool, "w"), pool, running)
    before = keda_replicas(world, pool)
    register(world).pause(pool, "ana")
    world.apply(Plan(replicas=0))
    assert keda_replicas(world, pool) == replicas
    register(world).resume(pool, "ana")
    world.apply(Plan(replicas=2))
    assert keda_replicas(world, pool) == before > 0

"""Explanations name the fleet where an installation has several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.explain.model import Factor
from lowtide.explain.service import Explainer
from lowtide.explain.store import PART_COUNTS, FactStore
from lowtide.explain.words import advice, words
from lowtide.queue.store import QueueStore
from tests.explain.test_situations import FLEET
from tests.plans import plan_nodes

if TYPE_CHECKING:
    from lowtide.explain.model import Explanation
    from tests.worlds import World

LINES, LARGE = 30, 10


def _mixed(world: World) -> BatchId:
    """Return a batch, split an hour ago, a third of which the fleet `large` runs."""
    batch = world.batch(LINES)
    world.run(
        "UPDATE batches SET fleet = NULL, fleet_of_model = '{large,default}', "
        "in_progress_at = now() - interval '1 hour' WHERE id = :batch",
        batch=batch,
    )
    world.run(
        "INSERT INTO batch_fleets (batch_id, fleet, tenant_id, lines, split) VALUES "
        "(:batch, 'large', :tenant, :large, :large), (:batch, 'default', :tenant, :rest, :rest)",
        batch=batch,
        tenant=DEFAULT_TENANT,
        large=LARGE,
        rest=LINES - LARGE,
    )
    world.split_runs()
    world.run(
        "UPDATE queued_runs SET fleet = 'large' WHERE batch_id = :batch AND line <= :large",
        batch=batch,
        large=LARGE,
    )
    return batch


def _pause(world: World, fleet: str, pool: str) -> None:
    with world.database.engine("operator").begin() as connection:
        connection.execute(
            text("INSERT INTO paused_pools (fleet, pool, paused_by) VALUES (:fleet, :pool, 'me')"),
            {"fleet": fleet, "pool": pool},
        )


def _worker(world: World, fleet: str, running: int) -> None:
    queue = QueueStore(world.worker, new_id=new_id, lease_duration=30.0, fleet=fleet)
    assert len(queue.claim(queue.open_lease(Pool.SPOT, "w"), Pool.SPOT, running)) == running


def _explained(world: World, batch: BatchId, *fleets: str) -> Explanation:
    store = FactStore(world.api, dict.fromkeys(fleets, FLEET))
    return Explainer(store).explain(DEFAULT_TENANT, batch)


def _limiting(explanation: Explanation) -> str:
    return words(explanation.limiting.factor, explanation.limiting.numbers)


def test_paused_pool_of_a_part_is_named_with_its_own_requests(world: World) -> None:
    batch = _mixed(world)
    _worker(world, DEFAULT_FLEET, 4)
    _worker(world, "large", 2)
    _pause(world, "large", "spot")
    _pause(world, "large", "dedicated")
    explanation = _explained(world, batch, "large", DEFAULT_FLEET)
    assert _limiting(explanation) == (
        "The spot pool of fleet large is paused; 8 requests wait for it"
    )
    assert (explanation.waiting, explanation.running) == (24, 6)
    (change,) = [each for each in explanation.advice if each.factor is Factor.POOL_PAUSED]
    assert advice(change.factor, change.numbers) == "Resume spot of fleet large"


@pytest.mark.parametrize(
    ("fleets", "expected"),
    [
        pytest.param(
            (DEFAULT_FLEET,), "The spot pool is paused; 30 requests wait for it", id="one"
        ),
        pytest.param(
            (DEFAULT_FLEET, "large"),
            "The spot pool of fleet default is paused; 30 requests wait for it",
            id="two",
        ),
        pytest.param(
            ("large",),
            "The spot pool of fleet default is paused; 30 requests wait for it",
            id="no longer declared",
        ),
    ],
)
def test_only_fleet_is_not_named(world: World, fleets: tuple[str, ...], expected: str) -> None:
    batch = world.batch(LINES)
    _pause(world, DEFAULT_FLEET, "spot")
    assert _limiting(_explained(world, batch, *fleets)) == expected


def test_ended_batch_of_several_fleets_blames_none(world: World) -> None:
    batch = _mixed(world)
    world.run("DELETE FROM queued_runs WHERE batch_id = :batch", batch=batch)
    world.run(
        "UPDATE batches SET status = 'completed', completed = :lines, drained_at = now(), "
        "finalizing_at = now(), completed_at = now() WHERE id = :batch",
        batch=batch,
        lines=LINES,
    )
    world.run(
        "INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed, running_seconds) "
        "VALUES (:batch, 'spot', :batch, :tenant, :lines, :lines)",
        batch=batch,
        tenant=DEFAULT_TENANT,
        lines=LINES,
    )
    explanation = _explained(world, batch, "large", DEFAULT_FLEET)
    assert _limiting(explanation) == "Its requests mostly waited for a free spot worker"


def test_counts_of_a_part_are_read_by_index(world: World) -> None:
    nodes = plan_nodes(
        world.database.engine("operator"), PART_COUNTS, batch=_mixed(world), fleet="large"
    )
    assert {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} == set()


@pytest.mark.parametrize(
    ("factor", "numbers", "expected"),
    [
        (Factor.ENGINE_AWAY, {"workers": 2}, "The engine of 2 spot workers of fleet a does not"),
        (Factor.NO_WORKERS, {"max": 4}, "No spot worker of fleet a is running; up to 4 may"),
        (Factor.COLD_START, {"seconds": 60}, "The spot workers of fleet a are starting"),
        (Factor.POOL_BOUND, {"workers": 1, "max": 1}, "1 spot worker of fleet a is busy"),
        (Factor.POOL_BOUND, {}, "mostly waited for a free spot worker of fleet a"),
    ],
)
def test_fleet_follows_its_workers(factor: Factor, numbers: dict[str, int], expected: str) -> None:
    assert expected in words(factor, {"pool": "spot", "fleet": "a", **numbers})


def test_advice_names_the_fleet_of_more_replicas() -> None:
    numbers: dict[str, int | float | str] = {"pool": "spot", "max": 4, "more": 8, "fleet": "a"}
    assert advice(Factor.POOL_BOUND, numbers) == (
        "Allow 8 spot replicas of fleet a: the maximum is 4"
    )

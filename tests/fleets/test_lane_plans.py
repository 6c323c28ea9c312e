"""Plans at fifty fleets: what one fleet's claims, counts and plans read does not grow with the others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.fleets.scaling import scaled_object
from lowtide.queue import claiming
from lowtide.scheduler import plan
from manifests.overlays import ROOT
from tests.fleets.single import SINGLE
from tests.loads import fill, pages_read

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId
    from tests.worlds import World

FLEETS, BATCHES, LINES = 50, 4, 500
(ONE,) = SINGLE


def _fill_others(world: World) -> None:
    """Give every other fleet batches, of which one request runs."""
    names = [f"fleet-{number}" for number in range(1, FLEETS)]
    for _ in range(BATCHES):
        for name in names:
            batch = fill(world, LINES // BATCHES)
            world.run("UPDATE batches SET fleet = :f WHERE id = :b", f=name, b=batch)
            world.run("UPDATE queued_runs SET fleet = :f WHERE batch_id = :b", f=name, b=batch)
    world.run(
        "INSERT INTO fleets (name) SELECT unnest(cast(:names AS text[])) ON CONFLICT DO NOTHING",
        names=names,
    )
    with world.database.engine("owner").begin() as connection:
        connection.execute(text("ANALYZE batches, queued_runs, claimed_runs, tallies"))


def _statements(world: World, batch: BatchId) -> dict[str, tuple[str, str, dict[str, Any]]]:
    lane = {"fleet": DEFAULT_FLEET, "pool": "spot"}
    lease = world.queue.open_lease(Pool.SPOT, "w")
    shares = [{"lines": 50, "lanes": [{"batch": str(batch), "at": "-infinity", "line": 0}]}]
    move = [{"batch": str(batch), "lines": 50, "reason": "deadline_bound", "bound": None}]
    query = scaled_object(ROOT, DEFAULT_FLEET, Pool.SPOT, ONE.spot, name="x", writer="x")
    scaler = query.partition("query: >-\n")[2].partition("targetQueryValue")[0]
    return {
        "claim": ("worker", claiming.TAKE, {"lease": lease, "shares": json.dumps(shares)} | lane),
        "lanes": ("worker", claiming.LANES[Pool.SPOT], {"most": 100, "without": []} | lane),
        "escalation": (
            "worker", plan.ESCALATE, {"fleet": DEFAULT_FLEET, "moves": json.dumps(move)},
        ),
        "fallback": (
            "worker", plan.FALL_BACK,
            {"source": DEFAULT_FLEET, "target": "fleet-1", "moves": json.dumps(move)},
        ),
        "scaler": ("autoscaler", scaler.replace(":", r"\:"), {}),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["claim", "lanes", "escalation", "fallback", "scaler"])
def test_statements_of_a_fleet_read_no_more_beside_others(world: World, name: str) -> None:
    role, sql, values = _statements(world, fill(world, LINES))[name]
    alone = pages_read(world.database.engine(role), sql, **values)
    _fill_others(world)
    beside = pages_read(world.database.engine(role), sql, **values)
    # The indexes are a level higher. Listings read the rows of open batches, but no queue of others.
    extra = FLEETS * BATCHES if name in {"lanes", "scaler"} else 0
    assert beside <= alone * 1.5 + 60 + extra

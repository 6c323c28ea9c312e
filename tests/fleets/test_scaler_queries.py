"""The scaler queries of several fleets, on the real schema and as the autoscaler role."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import yaml
from sqlalchemy import text

from lowtide.core.pools import Pool
from lowtide.fleets.parsing import parse
from lowtide.fleets.render import scaler_text
from lowtide.local.autoscaler import Memory, decide, policy
from lowtide.local.manifests import ScaledObject
from lowtide.settings import Settings
from manifests.overlays import ROOT

if TYPE_CHECKING:
    from lowtide.fleets.model import Fleets
    from lowtide.local.autoscaler import Policy
    from tests.worlds import World

FLEETS = parse(
    """\
fleets:
  large:
    models: [large]
    spot: {max_replicas: 3, rows_per_replica: 7}
    dedicated: {max_replicas: 2, rows_per_replica: 4}
  small:
    models: [small]
    spot: {max_replicas: 6}
    dedicated: {min_replicas: 1, max_replicas: 5}
""",
    Settings(),
).fleets
WIDE = parse(
    """\
fleets:
  large:
    models: [large]
    spot: {max_replicas: 40}
    dedicated: {max_replicas: 20}
  small:
    models: [small]
    spot: {max_replicas: 29, rows_per_replica: 7}
    dedicated: {max_replicas: 67, rows_per_replica: 3}
""",
    Settings(),
).fleets
"""Fleets whose bounds allow all the replicas that 200 requests call for."""
ROWS = dict(
    zip([(fleet.name, pool) for fleet in WIDE for pool in Pool], (5, 10, 7, 3), strict=True)
)
LANES = [(fleet.name, pool) for fleet in FLEETS for pool in Pool]


def rules(fleet: str, pool: Pool, fleets: Fleets = FLEETS) -> Policy:
    found = fleets.get(fleet)
    assert found is not None
    document = yaml.safe_load(scaler_text(ROOT, found, pool))
    return policy(msgspec.convert(document, ScaledObject))


def count(world: World, fleet: str, pool: Pool) -> float:
    """Return what the query counts."""
    with world.database.engine("autoscaler").connect() as connection:
        return float(connection.execute(text(rules(fleet, pool).query)).scalar_one())


def run(world: World, statement: str) -> None:
    """Run a statement as superuser, without foreign keys and row security."""
    with world._superuser.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(statement))


def fill(world: World, table: str, fleet: str, pool: Pool, rows: int) -> None:
    """Insert requests of a lane, in runs of up to three."""
    if table == "claimed_runs":
        claim = (
            ", lease_id, claimed_at, attempts, interruptions, lost_leases, escalated",
            ", gen_random_uuid(), now(), 0, 0, 0, false",
        )
    else:
        claim = (", available_at", ", now()")
    run(
        world,
        f"INSERT INTO {table} (batch_id, tenant_id, deadline, queued_at, line, size, lines, fleet, "  # noqa: S608 - names of ours
        f"pool{claim[0]}) SELECT gen_random_uuid(), gen_random_uuid(), now(), now(), min(n), count(*), "
        f"range_agg(int4range(n, n + 1)), '{fleet}', '{pool}'{claim[1]} "
        f"FROM generate_series(1, {rows}) n GROUP BY (n - 1) / 3",
    )
    run(
        world,
        "INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, "
        "completion_window, status, created_at, deadline, fleet) SELECT batch_id, tenant_id, 'u', batch_id, "
        "'k', '/v1/embeddings', '24h', 'in_progress', now(), now(), fleet FROM queue ON CONFLICT DO NOTHING",
    )


def worker(world: World, fleet: str, pool: Pool, engine: str) -> None:
    run(
        world,
        "INSERT INTO workers (id, fleet, pool, name, expires_at, engine_state) VALUES "  # noqa: S608 - names of ours
        f"(gen_random_uuid(), '{fleet}', '{pool}', 'w', now() + interval '1 h', '{engine}')",
    )


@pytest.mark.parametrize(("fleet", "pool"), LANES)
def test_replicas_are_the_ceiling_of_the_lanes_requests(
    world: World, fleet: str, pool: Pool
) -> None:
    for other in LANES:
        if other != (fleet, pool):
            fill(world, "queued_runs", *other, 9)
            fill(world, "claimed_runs", *other, 9)
    scaling = rules(fleet, pool)
    found = FLEETS.get(fleet)
    assert found is not None
    spec = found.pool(pool)
    most = spec.max_replicas * spec.rows_per_replica
    replicas = []
    for _ in range(most + 3):
        value = count(world, fleet, pool)
        replicas.append(decide(scaling, Memory(), value, 0.0).replicas)
        fill(world, "queued_runs", fleet, pool, 1)
    expected = [
        max(spec.min_replicas, min(-(-requests // spec.rows_per_replica), spec.max_replicas))
        for requests in range(most + 3)
    ]
    assert replicas == expected
    assert count(world, fleet, pool) == most


def test_replicas_follow_each_lane_alone_while_all_queues_vary(world: World) -> None:
    policies = {lane: rules(*lane, WIDE) for lane in LANES}
    everything = "SELECT " + ", ".join(f"({policies[lane].query})" for lane in LANES)
    # With factors that share no divisor with 201, each lane takes every number from 0 to 200 once,
    # beside ever other numbers in the others.
    for step in range(201):
        rows = {lane: step * factor % 201 for lane, factor in zip(LANES, (1, 2, 5, 7), strict=True)}
        run(world, "DELETE FROM claimed_runs; DELETE FROM queued_runs")
        for lane, number in rows.items():
            fill(world, "claimed_runs", *lane, number // 3)
            fill(world, "queued_runs", *lane, number - number // 3)
        with world.database.engine("autoscaler").connect() as connection:
            values = dict(zip(LANES, connection.execute(text(everything)).one(), strict=True))
        replicas = {
            lane: decide(policies[lane], Memory(), values[lane], 0.0).replicas for lane in LANES
        }
        assert replicas == {lane: -(-rows[lane] // ROWS[lane]) for lane in LANES}, rows


def test_running_requests_count_in_their_own_lane(world: World) -> None:
    fill(world, "claimed_runs", "large", Pool.SPOT, 8)
    fill(world, "queued_runs", "large", Pool.SPOT, 3)
    counts = {lane: count(world, *lane) for lane in LANES}
    assert counts == dict.fromkeys(LANES, 0) | {("large", Pool.SPOT): 11}


def test_pause_of_one_lane_leaves_the_others(world: World) -> None:
    for lane in LANES:
        fill(world, "queued_runs", *lane, 5)
    run(world, "INSERT INTO paused_pools (fleet, pool, paused_by) VALUES ('large', 'spot', 'ana')")
    counts = {lane: count(world, *lane) for lane in LANES}
    assert counts == dict.fromkeys(LANES, 5) | {("large", Pool.SPOT): 0}


def test_plan_of_one_fleet_caps_its_dedicated_pool_alone(world: World) -> None:
    for lane in LANES:
        fill(world, "queued_runs", *lane, 100)
    run(
        world,
        "INSERT INTO wanted_replicas (fleet, pool, replicas, since) VALUES ('large', 'dedicated', 1, '{}')",
    )
    counts = [count(world, *lane) for lane in LANES]
    assert counts == [21, 4, 30, 50]


def test_fleet_without_engine_gains_no_replicas_and_takes_none_from_another(world: World) -> None:
    for fleet in ("large", "small"):
        fill(world, "queued_runs", fleet, Pool.SPOT, 100)
    worker(world, "large", Pool.SPOT, "open")
    worker(world, "small", Pool.SPOT, "closed")
    assert count(world, "large", Pool.SPOT) == 7
    assert count(world, "small", Pool.SPOT) == 30


def test_worker_stays_to_probe_its_engine_for_work_of_its_own_fleet_only(world: World) -> None:
    worker(world, "large", Pool.SPOT, "open")
    fill(world, "queued_runs", "small", Pool.SPOT, 1)
    assert count(world, "large", Pool.SPOT) == 0
    fill(world, "queued_runs", "large", Pool.DEDICATED, 1)
    assert count(world, "large", Pool.SPOT) == 1

"""A tenant's own usage: limits, this month's cost at stored prices, paused pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.errors import NotFound
from lowtide.core.ids import DEFAULT_TENANT, TenantId, new_id
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.database.connections import acting_for
from lowtide.tenants import usage
from lowtide.tenants.usage import UsageStore
from tests.plans import plan_nodes

if TYPE_CHECKING:
    from tests.worlds import World

BATCH = """
INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, completion_window,
  status, created_at, deadline, completed_at, total, spot_price, dedicated_price, currency)
SELECT gen_random_uuid(), :tenant, 'ana', gen_random_uuid(), 'key', '/v1/embeddings', '24h', :status,
  now(), now(), CASE WHEN :status = 'completed' THEN
    date_trunc('month', now(), 'UTC') + cast(:ended AS interval) END, 10, :spot, :dedicated, :currency
FROM generate_series(1, :count)
"""
TALLIES = """
INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed, failed, input_tokens,
  output_tokens, replica_seconds)
SELECT id, pool, gen_random_uuid(), tenant_id, 3, 1, 5, 7, 3600
FROM batches, unnest(ARRAY['spot', 'spot', 'dedicated']) AS pool
"""


def _add(world: World, count: int = 1, **changes: Any) -> None:
    values = {
        "tenant": DEFAULT_TENANT, "status": "completed", "ended": "0", "spot": 1.0,
        "dedicated": 4.0, "currency": "USD", "count": count,
    }  # fmt: skip
    world.run(BATCH, **(values | changes))


def _run_as(world: World, role: str, sql: str, **values: Any) -> None:
    with world.database.engine(role).begin() as connection:
        connection.execute(text(sql), values)


@pytest.fixture
def store(world: World) -> UsageStore:
    """The store as the role of the API."""
    return UsageStore(world.api)


def test_month_counts_active_and_ended_batches_at_their_stored_prices(
    world: World, store: UsageStore
) -> None:
    _add(world)
    _add(world, spot=2.0, dedicated=5.0)
    _add(world, status="in_progress")
    _add(world, ended="-1 second")
    _add(world, tenant=world.tenant("other"))
    world.run(TALLIES)
    month = store.read(DEFAULT_TENANT).month
    assert (month.batches, month.requests) == (3, 36)
    assert (month.input_tokens, month.output_tokens) == (45, 63)
    (cost,) = month.costs
    assert (cost.currency, cost.spot, cost.dedicated) == ("USD", 8.0, 13.0)
    assert cost.all_dedicated == 39.0
    assert month.since == world.value("SELECT date_trunc('month', now(), 'UTC')")


def test_currencies_are_never_added(world: World, store: UsageStore) -> None:
    _add(world)
    _add(world, currency="EUR", spot=10.0)
    world.run(TALLIES)
    costs = store.read(DEFAULT_TENANT).month.costs
    assert [(cost.currency, cost.spot) for cost in costs] == [("EUR", 20.0), ("USD", 2.0)]


def test_tenant_without_batches_has_used_nothing(store: UsageStore) -> None:
    read = store.read(DEFAULT_TENANT)
    assert read.tenant == "default"
    assert (read.month.batches, read.month.requests, read.month.costs) == (0, 0, ())
    assert set(read.used.values()) == {0, None}
    assert read.used["requests_per_minute"] is None, "not counted without a limit"
    assert read.paused == ()


def test_limits_are_shown_with_their_use(world: World, store: UsageStore) -> None:
    limited = world.tenant("limited")
    _run_as(
        world,
        "operator",
        "UPDATE tenants SET max_requests_per_minute = 60, max_active_batches = 2, "
        "max_queued_lines = 100, max_running_lines = 5 WHERE id = :id",
        id=limited,
    )
    _run_as(world, "owner", "INSERT INTO request_rates VALUES (:id, 30, now())", id=limited)
    world.batch(8, tenant=limited)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claimed = len(world.queue.claim(lease, Pool.SPOT, 3))
    read = store.read(limited)
    assert (read.limits.requests_per_minute, read.limits.running_lines) == (60, 5)
    assert read.used["requests_per_minute"] in range(20, 31)
    assert {**read.used, "requests_per_minute": 0} == {
        "requests_per_minute": 0,
        "active_batches": 1,
        "queued_lines": 8,
        "running_lines": claimed,
    }


def test_paused_pools_are_shown_without_who_paused_them(world: World, store: UsageStore) -> None:
    with world.database.engine("operator").begin() as connection:
        connection.execute(
            text(
                "INSERT INTO paused_pools (fleet, pool, paused_by) "
                "VALUES ('default', 'spot', 'Ada'), ('large', 'spot', 'Ada')"
            )
        )
    places = [pause.place for pause in store.read(DEFAULT_TENANT).paused]
    assert places == [(DEFAULT_FLEET, Pool.SPOT), ("large", Pool.SPOT)]
    assert "Ada" not in repr(store.read(DEFAULT_TENANT))


def test_unknown_tenant_is_not_found(store: UsageStore) -> None:
    with pytest.raises(NotFound):
        store.read(TenantId(new_id()))


def test_tenant_reads_only_its_own_limits(world: World) -> None:
    other = world.tenant("other")
    rates = "INSERT INTO request_rates VALUES (:a, 1, now()), (:b, 1, now())"
    _run_as(world, "owner", rates, a=DEFAULT_TENANT, b=other)
    for tenant in (DEFAULT_TENANT, other):
        with acting_for(world.api, tenant) as connection:
            ids = connection.execute(text("SELECT id FROM tenants")).scalars().all()
            rated = connection.execute(text("SELECT tenant_id FROM request_rates")).scalars().all()
        assert (ids, rated) == ([tenant], [tenant])


def test_month_reads_ended_batches_by_index(world: World) -> None:
    """A year of batches of two tenants: only those of the month are read, and their tallies."""
    other = world.tenant("other")
    for tenant in (DEFAULT_TENANT, other):
        _add(world, 200, tenant=tenant)
        _add(world, 5000, tenant=tenant, ended="-40 days")
        _add(world, 3, tenant=tenant, status="in_progress")
    world.run(TALLIES)
    with world.database.engine("owner").connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(
            text("ANALYZE batches, tallies")
        )
    nodes = plan_nodes(world.database.engine("operator"), usage.MONTH, tenant=DEFAULT_TENANT)
    assert {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} == set()
    used = {node["Index Name"] for node in nodes if "Index Name" in node}
    assert {"batches_ended_of_tenant", "batches_active_of_tenant", "tallies_pkey"} <= used
    assert not [node for node in nodes if node["Node Type"] == "Sort"]
    conditions = [
        node["Index Cond"] for node in nodes if node.get("Index Name") == "batches_ended_of_tenant"
    ]
    assert all("date_trunc" in condition for condition in conditions), "bounded by the month"

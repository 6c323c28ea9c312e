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

USED = """
INSERT INTO usage_days (tenant_id, day, currency, pool, shard, requests, input_tokens, output_tokens,
  cost, dedicated_cost)
SELECT :tenant, (date_trunc('month', now() AT TIME ZONE 'UTC') + cast(:ago AS interval))::date
  - n, :currency, :pool, shard, 3, 5, 7, :cost, 4
FROM generate_series(0, :days - 1) AS n, generate_series(1, 2) AS shard
"""


def _add(world: World, **changes: Any) -> None:
    values = {
        "tenant": DEFAULT_TENANT, "ago": "0", "currency": "USD", "pool": "spot", "cost": 1.0, "days": 1,
    }  # fmt: skip
    world.run(USED, **(values | changes))


def _run_as(world: World, role: str, sql: str, **values: Any) -> None:
    with world.database.engine(role).begin() as connection:
        connection.execute(text(sql), values)


@pytest.fixture
def store(world: World) -> UsageStore:
    """The store as the role of the API."""
    return UsageStore(world.api)


def test_month_counts_what_was_used_since_its_start(world: World, store: UsageStore) -> None:
    _add(world)
    _add(world, pool="dedicated", cost=4.0)
    _add(world, ago="-1 day")
    _add(world, tenant=world.tenant("other"))
    month = store.read(DEFAULT_TENANT).month
    assert (month.requests, month.input_tokens, month.output_tokens) == (12, 20, 28)
    (cost,) = month.costs
    assert (cost.currency, cost.spot, cost.dedicated) == ("USD", 2.0, 8.0)
    assert cost.all_dedicated == 16.0
    assert month.since == world.value("SELECT date_trunc('month', now(), 'UTC')")


def test_currencies_are_never_added(world: World, store: UsageStore) -> None:
    _add(world)
    _add(world, currency="EUR", cost=10.0)
    read = store.read(DEFAULT_TENANT)
    assert [(cost.currency, cost.spot) for cost in read.month.costs] == [
        ("EUR", 20.0),
        ("USD", 2.0),
    ]
    assert read.used["spend_per_month"] == 20.0


def test_tenant_without_batches_has_used_nothing(store: UsageStore) -> None:
    read = store.read(DEFAULT_TENANT)
    assert read.tenant == "default"
    assert (read.month.requests, read.month.costs) == (0, ())
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
        "enqueued_tokens": 3,
        "tokens_per_day": 0,
        "spend_per_month": 0,
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


def test_month_reads_its_days_by_key(world: World) -> None:
    other = world.tenant("other")
    for tenant in (DEFAULT_TENANT, other):
        _add(world, tenant=tenant, days=5000)
    with world.database.engine("owner").connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(
            text("ANALYZE usage_days")
        )
    nodes = plan_nodes(world.database.engine("operator"), usage.MONTH, tenant=DEFAULT_TENANT)
    (scan,) = [node for node in nodes if "Index Name" in node]
    assert scan["Index Name"] == "usage_days_pkey"
    assert "day >=" in scan["Index Cond"]
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan"]

"""Quotas by tokens and cost: what counts, what waits, and what outlives the batches."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from lowtide.batches.admission import AdmissionPolicy
from lowtide.batches.forecast import WorkloadStore
from lowtide.batches.workload import NO_CAPACITY, Forecast
from lowtide.core.errors import Conflict
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.explain.service import Explainer
from lowtide.explain.store import FactStore
from lowtide.explain.words import words
from lowtide.planning.demand import Capacity
from lowtide.planning.escalation import Plan
from lowtide.planning.reasons import Reason
from lowtide.planning.state import decide
from lowtide.queue.claims import Returned
from lowtide.retention.store import RetentionStore
from lowtide.scheduler.plan import look
from lowtide.status.snapshot_store import SnapshotStore
from lowtide.tenants import quotas
from lowtide.tenants.quotas import QuotaStore, QuotaUse, read_shares
from lowtide.tenants.usage import UsageStore
from tests.days import within_a_day
from tests.loads import fill, tenant_with
from tests.plans import plan_nodes
from tests.queue.test_scaler_queries import keda_replicas
from tests.worlds import done, together

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId, TenantId
    from tests.worlds import World

TOKENS = 8
"""Of each result, see `done`."""
MONTH = "date_trunc('month', now() AT TIME ZONE 'UTC')::date"


@pytest.fixture(autouse=True)
def _one_day() -> None:
    within_a_day(30)


def _operate(world: World, sql: str, **values: Any) -> None:
    with world.database.engine("operator").begin() as connection:
        connection.execute(text(sql), values)


def _work(world: World, lines: int, *, pool: Pool = Pool.SPOT) -> int:
    """Claim up to so many requests and settle them; return how many."""
    lease = world.queue.open_lease(pool, "w")
    claims = world.queue.claim(lease, pool, lines)
    world.queue.settle(lease, [done(claim) for claim in claims], [])
    return len(claims)


def _tokens(world: World, tenant: TenantId) -> int:
    return int(world.value("SELECT tokens FROM quota_use(:tenant)", tenant=tenant))


def _results(world: World, tenant: TenantId) -> int:
    return int(
        world.value(
            "SELECT coalesce(sum(input_tokens + output_tokens), 0) FROM results "
            "WHERE tenant_id = :tenant",
            tenant=tenant,
        )
    )


def test_results_are_charged_once(world: World) -> None:
    tenant = world.tenant("charged")
    batch = fill(world, 10, tenant=tenant)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 10)
    first, second, *rest = (done(claim) for claim in claims)
    world.queue.settle(lease, [first], [Returned(batch, second.line, "x", 0.0, failed=True)])
    assert _tokens(world, tenant) == TOKENS, "what was returned is not charged"
    world.queue.settle(lease, [first, second], [])
    assert _tokens(world, tenant) == TOKENS, "nor what is settled again, or was given back"
    world.queue.settle(lease, rest, [])
    assert _tokens(world, tenant) == _results(world, tenant) == 9 * TOKENS


def test_cost_is_that_of_the_batch_at_the_prices_of_its_pool(world: World) -> None:
    """The sum over days is the sum over batches, also of one that runs in several fleets."""
    tenant = world.tenant("priced")
    plain = fill(world, 4, tenant=tenant, pool="dedicated")
    parted = fill(world, 4, tenant=tenant)
    world.run("UPDATE batches SET spot_price = 2, dedicated_price = 5, currency = 'USD'")
    world.run("UPDATE batches SET fleet = NULL WHERE id = :id", id=parted)
    world.run(
        "INSERT INTO batch_fleets (batch_id, fleet, tenant_id, lines, spot_price, dedicated_price) "
        "VALUES (:id, :fleet, :tenant, 4, 20, 50)",
        id=parted,
        fleet=DEFAULT_FLEET,
        tenant=tenant,
    )
    for pool in Pool:
        lease = world.queue.open_lease(pool, "w")
        claims = world.queue.claim(lease, pool, 4)
        finished = [replace(done(claim), replica_seconds=900.0) for claim in claims]
        assert len(finished) == 4
        world.queue.settle(lease, finished, [])
    (cost,) = UsageStore(world.api).read(tenant).month.costs
    assert (cost.spot, cost.dedicated, cost.all_dedicated) == (20.0, 5.0, 55.0)
    states = "SELECT spot_cost, dedicated_cost, all_dedicated_cost FROM batch_states WHERE id = :id"
    by_batch = [world.rows(states, id=batch)[0] for batch in (plain, parted)]
    assert [sum(column) for column in zip(*by_batch, strict=True)] == [20.0, 5.0, 55.0]
    assert world.value("SELECT spend FROM quota_use(:tenant)", tenant=tenant) == 25.0


@pytest.mark.parametrize(
    ("limit", "used"),
    [({"max_tokens_per_day": 10 * TOKENS}, "tokens"), ({"max_spend_per_month": 10}, "cost")],
    ids=["tokens", "spend"],
)
def test_claims_end_when_a_quota_is_used_up(world: World, limit: dict[str, int], used: str) -> None:
    """Before any tick notes it: what is claimed by then may end, and no more is claimed."""
    tenant = tenant_with(world, "limited", **limit)
    fill(world, 100, tenant=tenant)
    world.run("UPDATE batches SET spot_price = 1")
    free = fill(world, 100, tenant=world.tenant("free"))
    lease = world.queue.open_lease(Pool.SPOT, "w")
    before = [claim for claim in world.queue.claim(lease, Pool.SPOT, 28) if claim.tenant == tenant]
    assert len(before) == 14
    hour = [replace(done(claim), replica_seconds=3600.0) for claim in before]
    world.queue.settle(lease, hour[:10], [])
    claims = world.queue.claim(lease, Pool.SPOT, 30)
    assert {claim.batch for claim in claims} == {free}, used
    world.queue.settle(lease, hour[10:], [])
    assert _results(world, tenant) == 14 * TOKENS
    _operate(world, f"UPDATE tenants SET {next(iter(limit))} = 1000 WHERE id = :id", id=tenant)  # noqa: S608
    later = world.queue.claim(world.queue.open_lease(Pool.SPOT, "w"), Pool.SPOT, 30)
    assert tenant in {claim.tenant for claim in later}


def test_many_workers_exceed_a_quota_by_what_was_running_alone(world: World) -> None:
    """Twenty workers, a third of which die with their claims and leave them to others."""
    limit = 600 * TOKENS
    tenant = tenant_with(world, "limited", max_tokens_per_day=limit)
    fill(world, 3000, tenant=tenant)

    def work(number: int) -> int:
        sizes = random.Random(number)  # noqa: S311
        queue = world.queue_on(world.own_engine("worker"))
        over = 0
        for _ in range(40):
            lease = queue.open_lease(Pool.SPOT, "w")
            before = _tokens(world, tenant)
            claims = queue.claim(lease, Pool.SPOT, sizes.randint(1, 12))
            over += bool(claims) and before >= limit
            if sizes.random() < 1 / 3:
                world.expire_lease(lease)
                world.sweep()
                continue
            queue.settle(lease, [done(claim) for claim in claims], [])
        return over

    claimed_over = sum(together(*[partial(work, number) for number in range(20)]))
    assert claimed_over == 0, "no claim began after the quota was used up"
    used = _tokens(world, tenant)
    assert limit <= used <= limit + 20 * 12 * TOKENS
    assert used == _results(world, tenant), "nothing counted twice, nothing lost"


def _held(world: World) -> tuple[TenantId, BatchId]:
    """Return a tenant that has used up its quota, and its batch, whose 56 requests wait."""
    tenant = tenant_with(world, "limited", max_tokens_per_day=10)
    batch = fill(world, 60, tenant=tenant)
    assert _work(world, 4) == 4
    assert QuotaStore(world.worker).note_used_up() == 1
    return tenant, batch


def test_held_requests_need_no_worker_and_no_plan(world: World) -> None:
    tenant, batch = _held(world)
    assert keda_replicas(world, Pool.SPOT) == 0
    with world.worker.begin() as connection:
        assert look(connection)[DEFAULT_FLEET].batches == ()
    workload = WorkloadStore(world.api).read().of(DEFAULT_FLEET)
    assert workload.work == ()
    with_state = world.batches.get(tenant, batch)
    assert workload.forecast(with_state, NO_CAPACITY) == Forecast(), "its end is unknown"
    other = fill(world, 6, tenant=world.tenant("free"))
    assert keda_replicas(world, Pool.SPOT) == 2
    with world.worker.begin() as connection:
        assert [each.id for each in look(connection)[DEFAULT_FLEET].batches] == [other]


def test_running_requests_of_a_held_tenant_keep_their_workers(world: World) -> None:
    tenant = tenant_with(world, "limited", max_tokens_per_day=10)
    fill(world, 60, tenant=tenant, pool="dedicated", due_in=200.0)
    lease = world.queue.open_lease(Pool.DEDICATED, "w")
    claims = world.queue.claim(lease, Pool.DEDICATED, 40)
    capacity = Capacity(rate=0.1, replicas=2, cold_start=10.0, margin=0.0, tick=10.0)
    plan = partial(decide, capacity=capacity)
    world.timetable.replan(plan)
    assert keda_replicas(world, Pool.DEDICATED) == 2
    world.queue.settle(lease, [done(claim) for claim in claims[:4]], [])
    QuotaStore(world.worker).note_used_up()
    world.timetable.replan(plan)
    assert keda_replicas(world, Pool.DEDICATED) == 2, "36 run, and may end"
    world.queue.settle(lease, [done(claim) for claim in claims[4:]], [])
    world.timetable.replan(plan)
    assert keda_replicas(world, Pool.DEDICATED) == 0


def test_tick_notes_changes_alone(world: World) -> None:
    tenant, _ = _held(world)
    store = QuotaStore(world.worker)
    until = "SELECT until FROM exhausted_quotas WHERE tenant_id = :tenant"
    midnight = world.value("SELECT date_trunc('day', now(), 'UTC') + interval '24 h'")
    assert world.value(until, tenant=tenant) == midnight
    assert store.note_used_up() == 0
    _operate(world, "UPDATE tenants SET max_tokens_per_day = 1000 WHERE id = :id", id=tenant)
    store.note_used_up()
    assert world.rows("SELECT * FROM exhausted_quotas") == []
    assert keda_replicas(world, Pool.SPOT) == 4


def test_next_period_starts_at_zero(world: World) -> None:
    """Also before the tick: a note ends with its period."""
    tenant, _ = _held(world)
    world.run("UPDATE usage_days SET day = day - 1")
    world.run("UPDATE exhausted_quotas SET until = now()")
    assert keda_replicas(world, Pool.SPOT) == 4
    assert _work(world, 1) == 1
    assert _tokens(world, tenant) == TOKENS


def test_explanation_names_the_quota(world: World) -> None:
    tenant, batch = _held(world)
    finding = Explainer(FactStore(world.api, {})).explain(tenant, batch).limiting
    assert words(finding.factor, finding.numbers).startswith(
        "The tenant's tokens for today are used up, for "
    )
    assert finding.numbers["waiting"] == 56


@pytest.mark.parametrize(("after", "is_late"), [(-1, True), (1, False)])
def test_batch_due_before_the_quota_returns_is_at_risk(
    world: World, after: int, is_late: bool
) -> None:
    _, batch = _held(world)
    _set_due(world, batch, after)
    world.timetable.replan(lambda _: Plan())
    row = world.row(batch)
    assert (row.at_risk, row.risk_reason) == (
        (True, Reason.QUOTA_USED_UP) if is_late else (False, None)
    )


def _set_due(world: World, batch: BatchId, after: int) -> None:
    """Let a batch be due so many seconds after its tenant's quota returns."""
    world.run(
        """UPDATE batches b SET deadline = x.until + make_interval(secs => :after)
           FROM exhausted_quotas x WHERE x.tenant_id = b.tenant_id AND b.id = :id""",
        id=batch,
        after=after,
    )


def test_waiting_for_a_quota_puts_no_batch_on_track_and_alarms_nobody(world: World) -> None:
    """It was at risk before, and is due after the quota returns."""
    tenant = tenant_with(world, "limited", max_tokens_per_day=1)
    batch = fill(world, 60, tenant=tenant, due_in=2 * 86_400.0)
    snapshots = SnapshotStore(world.database.engine("operator"))
    world.timetable.replan(lambda _: Plan(at_risk=frozenset({batch})))
    _work(world, 1)
    assert [risky.batch for risky in snapshots.read(for_metrics=True).risky] == [batch]
    QuotaStore(world.worker).note_used_up()
    world.timetable.replan(lambda state: Plan(at_risk=frozenset(each.id for each in state.batches)))
    row = world.row(batch)
    assert (row.at_risk, row.risk_reason) == (True, Reason.DEADLINE_BOUND)
    events = world.rows("SELECT kind FROM request_events WHERE batch_id = :id", id=batch)
    assert [event.kind for event in events] == ["at_risk"]
    assert snapshots.read(for_metrics=True).risky == ()


@pytest.mark.parametrize(("quota", "late"), [(1, 0), (None, 59)], ids=["held", "raised"])
def test_deadline_that_a_quota_let_pass_breaks_no_promise(
    world: World, quota: int | None, late: int
) -> None:
    tenant = tenant_with(world, "limited", max_spend_per_month=1)
    batch = fill(world, 60, tenant=tenant, due_in=60.0)
    world.run("UPDATE batches SET spot_price = 3600")
    lease = world.queue.open_lease(Pool.SPOT, "w")
    (claim,) = world.queue.claim(lease, Pool.SPOT, 1)
    world.queue.settle(lease, [replace(done(claim), replica_seconds=1.0)], [])
    _operate(world, "UPDATE tenants SET max_spend_per_month = :quota", quota=quota)
    QuotaStore(world.worker).note_used_up()
    world.timetable.replan(lambda _: Plan())
    world.run("UPDATE batches SET deadline = now() WHERE id = :id", id=batch)
    assert world.ticks.sweep(cancel_grace=1e6, stalled_after=1e6).late == late
    assert world.lines("queue", batch) == []


def test_usage_outlives_its_batches_within_retention(world: World) -> None:
    tenant, batch = _held(world)
    before = _tokens(world, tenant)
    for table in ("queued_runs", "results", "tallies", "requests"):
        world.run(f"DELETE FROM {table} WHERE batch_id = :id", id=batch)  # noqa: S608
    world.run("DELETE FROM batches WHERE id = :id", id=batch)
    assert _tokens(world, tenant) == before > 0
    for days in (1, 40):
        world.run(
            "INSERT INTO usage_days SELECT tenant_id, cast(:day AS date), currency, pool, shard, 1, 1, 1, "
            "1, 1 FROM usage_days WHERE day >= cast(:month AS date) LIMIT 1",
            day=world.value(f"SELECT {MONTH} - cast(:days AS integer)", days=days),
            month=world.value(f"SELECT {MONTH}"),
        )
    store = RetentionStore(world.worker)
    assert store.delete_usage(30 * 86_400.0, 100) == 1
    assert store.delete_usage(0.0, 100) == 1
    assert store.delete_usage(0.0, 100) == 0, "this month's stays"
    assert _tokens(world, tenant) == before


def test_days_that_have_ended_are_folded(world: World) -> None:
    """Their sums stay; what settles today and yesterday is left alone."""
    tenant = world.tenant("folded")
    world.run(
        "INSERT INTO usage_days SELECT :tenant, (now() AT TIME ZONE 'UTC')::date - ago, 'USD', pool, "
        "shard, 1, 2, 3, 0.5, 1.5 FROM generate_series(0, 3) ago, unnest(ARRAY['spot', 'dedicated']) pool, "
        "generate_series(0, 15) shard",
        tenant=tenant,
    )
    store = RetentionStore(world.worker)
    folded = 0
    while set_ := store.fold_usage(25):
        folded += set_
    assert folded == 2 * 2 * 15
    days = world.rows(
        "SELECT count(*) AS parts, sum(requests), sum(input_tokens), sum(output_tokens), sum(cost), "
        "sum(dedicated_cost) FROM usage_days GROUP BY day, pool ORDER BY day"
    )
    assert [day.parts for day in days] == 4 * [1] + 4 * [16]
    assert {tuple(day[1:]) for day in days} == {(16, 32, 48, 8.0, 24.0)}


def test_shares_of_quotas_are_read_for_alerts(world: World) -> None:
    tenant = tenant_with(world, "limited", max_tokens_per_day=4 * TOKENS, max_enqueued_tokens=1000)
    tenant_with(world, "free")
    batch = fill(world, 10, tenant=tenant)
    world.run("UPDATE batches SET enqueued_tokens = 500 WHERE id = :id", id=batch)
    _work(world, 2)
    with world.database.engine("operator").begin() as connection:
        assert read_shares(connection) == [
            QuotaUse("limited", "enqueued_tokens", 0.4),
            QuotaUse("limited", "tokens_per_day", 0.5),
        ]


@pytest.mark.parametrize("statement", [quotas.NOTE, quotas.SHARES], ids=["note", "shares"])
def test_tenants_without_quotas_cost_nothing(world: World, statement: str) -> None:
    """Nine hundred tenants with usage and no quota: their usage is not read."""
    with world.database.engine("owner").begin() as connection:
        connection.execute(
            text(
                "INSERT INTO tenants (id, name) SELECT gen_random_uuid(), 't' || n "
                "FROM generate_series(1, 900) n"
            )
        )
    world.run(
        "INSERT INTO usage_days SELECT id, current_date - n, 'USD', 'spot', 1, 1, 1, 1, 1, 1 "
        "FROM tenants, generate_series(1, 30) n"
    )
    with world.database.engine("owner").connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(
            text("ANALYZE usage_days, tenants")
        )
    nodes = plan_nodes(world.worker, statement)
    scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
    assert "usage_days" not in scanned


def test_requests_that_all_run_put_no_batch_at_risk(world: World) -> None:
    tenant = tenant_with(world, "limited", max_tokens_per_day=10)
    batch = fill(world, 4, tenant=tenant)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 4)
    world.queue.settle(lease, [done(claim) for claim in claims[:3]], [])
    assert QuotaStore(world.worker).note_used_up() == 1
    _set_due(world, batch, -1)
    world.timetable.replan(lambda _: Plan())
    assert not world.row(batch).at_risk


def test_strict_admission_counts_held_work_that_returns_in_time(world: World) -> None:
    """It may run again an hour before its deadline; what cannot run by its own does not count."""
    _, held = _held(world)
    ends = "date_trunc('day', now(), 'UTC') + interval '25 h'"
    world.run(f"UPDATE batches SET deadline = {ends} WHERE id = :id", id=held)  # noqa: S608
    deadline = world.value(f"SELECT {ends}")
    seconds = (deadline - world.value("SELECT now()")).total_seconds()
    capacity = Capacity(60 / seconds, 1, cold_start=0.0, margin=0.0, tick=1.0)
    policy = AdmissionPolicy({DEFAULT_FLEET: capacity}, strict=True)

    def ask() -> None:
        policy.risk(deadline, {DEFAULT_FLEET: 30}, WorkloadStore(world.api).read())

    with pytest.raises(Conflict, match="cannot be met"):
        ask()
    world.run("UPDATE batches SET at_risk = true WHERE id = :id", id=held)
    ask()


def test_age_of_what_a_quota_held_begins_with_its_period(world: World) -> None:
    _held(world)
    world.run("UPDATE queued_runs SET available_at = available_at - interval '20 days'")
    snapshots = SnapshotStore(world.database.engine("operator"))

    def age() -> float:
        ((_, load),) = snapshots.read().by_fleet()
        return load.oldest_age(Pool.SPOT)

    assert age() == 0
    world.run("UPDATE exhausted_quotas SET until = now()")
    today = world.value(
        "SELECT extract(epoch FROM now() - date_trunc('day', now(), 'UTC'))::float8"
    )
    assert age() == pytest.approx(today, abs=30)

"""Snapshots of a real database."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, text

from lowtide.batches.model import BatchStatus
from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId
from lowtide.core.pools import DEFAULT_FLEET, Depth, FleetPool, Pool
from lowtide.database.connections import connect
from lowtide.engines.breaker import BreakerState
from lowtide.scheduler.pauses import PauseStore
from lowtide.status.last_seen import Component, LastSeenStore, Observation
from lowtide.status.snapshot import MAX_LISTED, Backlog, EngineUse, SystemSnapshot, Totals
from lowtide.status.snapshot_store import (
    EVENTS,
    LETTERS,
    LISTED_LETTERS,
    RECENT,
    RISKY,
    TOTALS,
    SnapshotStore,
)
from tests.loads import fill
from tests.plans import analyzed, executed_nodes, plan_nodes
from tests.portal.seeds import (
    SeedBatch,
    add_batch,
    add_claimed,
    add_old_batches,
    add_queued,
    add_worker,
)

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worlds import World

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def _read(database: Database, role: str = "operator") -> SystemSnapshot:
    return SnapshotStore(database.engine(role)).read(for_metrics=True)


@pytest.mark.parametrize("role", ["operator", "worker"])
def test_empty_installation_has_empty_snapshot(database: Database, role: str) -> None:
    snapshot = _read(database, role)
    assert snapshot.server_version[0].isdigit()
    assert snapshot.schema_version.isdigit()
    assert snapshot == SystemSnapshot(
        snapshot.at, server_version=snapshot.server_version, schema_version=snapshot.schema_version
    )


def test_totals_count_states_and_last_day(database: Database) -> None:
    worker = database.engine("worker")
    for seed in (
        SeedBatch(status=BatchStatus.VALIDATING),
        SeedBatch(status=BatchStatus.IN_PROGRESS, at_risk=True),
        SeedBatch(status=BatchStatus.FINALIZING),
        SeedBatch(status=BatchStatus.CANCELLING),
        SeedBatch(status=BatchStatus.COMPLETED, completed=100),
        SeedBatch(status=BatchStatus.COMPLETED, completed=1, age=2 * DAY, took=DAY + HOUR),
        SeedBatch(status=BatchStatus.COMPLETED, age=2 * DAY, took=DAY - HOUR),
        SeedBatch(status=BatchStatus.FAILED),
        SeedBatch(status=BatchStatus.EXPIRED),
        SeedBatch(status=BatchStatus.EXPIRED, age=3 * DAY),
        SeedBatch(status=BatchStatus.CANCELLED, window=MINUTE),
        SeedBatch(status=BatchStatus.COMPLETED, completed=1, failed=99, window=MINUTE),
        SeedBatch(status=BatchStatus.COMPLETED, failed=100),
        SeedBatch(status=BatchStatus.COMPLETED, failed=100, age=3 * DAY, window=MINUTE),
        SeedBatch(status=BatchStatus.COMPLETED, total=0),
    ):
        add_batch(worker, seed)
    assert _read(database).totals == Totals(
        batches=15,
        in_progress=4,
        at_risk=1,
        completed=5,
        failed=2,
        cancelled=1,
        missed=3,
        all_failed=1,
    )


def test_load_is_counted_by_tenant_and_pool(database: Database) -> None:
    worker = database.engine("worker")
    safe = add_batch(worker, SeedBatch(total=12, completed=2))
    risky = add_batch(worker, SeedBatch(total=0, at_risk=True))
    add_queued(worker, safe, "spot", range(1, 6))
    add_queued(worker, safe, "dedicated", range(6, 8))
    add_claimed(worker, safe, "spot", range(8, 11))
    add_worker(worker, "spot")
    add_worker(worker, "spot", expires_in=-1)
    with worker.begin() as connection:
        connection.execute(
            text("UPDATE queued_runs SET available_at = now() - interval '5 min' WHERE line = 3")
        )
        connection.execute(
            text("UPDATE queued_runs SET available_at = now() + interval '5 min' WHERE line > 5")
        )
    snapshot = _read(database)
    (tenant,) = snapshot.tenants
    assert (tenant.tenant, tenant.name) == (DEFAULT_TENANT, "default")
    assert (tenant.batches, tenant.at_risk) == (2, 1)
    assert tenant.depths == {Pool.SPOT: Depth(5, 3), Pool.DEDICATED: Depth(2, 0)}
    assert 300 <= tenant.oldest_age(Pool.SPOT, snapshot.at) < 360
    assert tenant.oldest_age(Pool.DEDICATED, snapshot.at) == 0  # delayed
    assert (snapshot.workers(Pool.SPOT), snapshot.workers(Pool.DEDICATED)) == (1, 0)
    (risky_batch,) = snapshot.risky
    assert (risky_batch.tenant, risky_batch.batch) == ("default", BatchId(risky))
    assert risky_batch.deadline > snapshot.at


def test_load_is_counted_by_fleet(database: Database) -> None:
    worker = database.engine("worker")
    mixed = add_batch(worker, SeedBatch(total=8, at_risk=True, parts={"large": 4, "small": 4}))
    add_queued(worker, mixed, "spot", range(1, 5), fleet="large")
    add_queued(worker, mixed, "dedicated", range(5, 7), fleet="small")
    add_claimed(worker, mixed, "spot", range(7, 9), fleet="small")
    add_worker(worker, "spot", fleet="small")
    add_worker(worker, "spot", fleet="old")
    with worker.begin() as connection:
        for statement in (
            """INSERT INTO fleets (name, spec) VALUES ('idle', '{"models": ["m", "n-*"]}')""",
            "INSERT INTO fleets (name) VALUES ('small')",
            """INSERT INTO wanted_replicas (fleet, pool, replicas, since)
              VALUES ('small', 'dedicated', 3, '{}')""",
            "UPDATE workers SET engine_state = 'open' WHERE fleet = 'old'",
        ):
            connection.exec_driver_sql(statement)
    PauseStore(database.engine("operator")).pause(Pool.SPOT, "ana", "large")
    snapshot = _read(database)
    (tenant,) = snapshot.tenants
    assert (tenant.batches, tenant.at_risk) == (1, 1), "a batch of two fleets is one batch"
    assert tenant.depths == {Pool.SPOT: Depth(4, 2), Pool.DEDICATED: Depth(2, 0)}
    assert snapshot.workers(Pool.SPOT) == 2
    assert list(snapshot.fleets) == ["idle", "large", "old", "small"]
    assert snapshot.fleets["idle"].models == ("m", "n-*")
    assert [load.at_risk for load in snapshot.fleets.values()] == [0, 1, 0, 1]
    large, small = snapshot.of_fleet("large"), snapshot.of_fleet("small")
    assert [large.depth(pool) for pool in Pool] == [Depth(4, 0), Depth(0, 0)]
    assert [small.depth(pool) for pool in Pool] == [Depth(0, 2), Depth(2, 0)]
    assert (large.workers(Pool.SPOT), small.workers(Pool.SPOT)) == (0, 1)
    assert (large.fleets["large"].planned, small.fleets["small"].planned) == (None, 3)
    assert large.pause(FleetPool("large", Pool.SPOT)) is not None
    assert [lost.fleet for lost in snapshot.lost_engines] == ["old"]


def _telemetry(database: Database, *values: str, pool: str = "spot") -> None:
    """Add a worker that reported these values."""
    worker = database.engine("worker")
    lease = add_worker(worker, pool)
    with worker.begin() as connection:
        connection.execute(
            text(f"""UPDATE workers SET (input_token_rate, output_token_rate, engine_running,
  engine_waiting, engine_kv_cache) = ({", ".join(values)}) WHERE id = :lease"""),  # noqa: S608
            {"lease": lease},
        )


NAN, HUGE = "'NaN'", "1e300"


def test_telemetry_of_workers_is_added_up_by_pool(database: Database) -> None:
    for _ in range(200):
        _telemetry(database, "100", "20.5", "64", "3", "0.25")
    _telemetry(database, "0", "0", "1", "0", "1")
    _telemetry(database, "7", "8", "NULL", "NULL", "NULL", pool="dedicated")
    snapshot = _read(database)
    assert snapshot.engines(Pool.SPOT) == EngineUse(20_000, 4100, 201, 12_801, 600, 1.0)
    assert snapshot.engines(Pool.DEDICATED) == EngineUse(7, 8)


@pytest.mark.parametrize("value", [NAN, HUGE, "-1", "'Infinity'", "'-Infinity'"])
def test_impossible_telemetry_is_unknown(database: Database, value: str) -> None:
    for _ in range(2):
        _telemetry(database, value, value, "-1", "-2147483648", value)
    assert _read(database).engines(Pool.SPOT) == EngineUse(reporting=2)
    _telemetry(database, "5", "6", "2147483647", "1000000000", "0")
    assert _read(database).engines(Pool.SPOT) == EngineUse(5, 6, 3, None, 1_000_000_000, 0)


def test_pool_whose_workers_report_nothing_has_no_telemetry(database: Database) -> None:
    add_worker(database.engine("worker"), "spot")
    snapshot = _read(database)
    assert snapshot.engines(Pool.SPOT) == snapshot.engines(Pool.DEDICATED) == EngineUse()


def test_recent_batches_are_newest_first_with_tallies(database: Database) -> None:
    worker = database.engine("worker")
    ids = [
        add_batch(worker, SeedBatch(age=MINUTE * age, completed=60, failed=2, interrupted=7))
        for age in range(23, 2, -1)
    ]
    recent = _read(database).recent
    assert [batch.id for batch in recent] == [BatchId(each) for each in reversed(ids[1:])]
    assert (recent[0].completed, recent[0].failed, recent[0].interruptions) == (60, 2, 7)


@pytest.mark.parametrize(
    ("seed", "pools"),
    [
        pytest.param(SeedBatch(), (Pool.SPOT,), id="all on spot"),
        pytest.param(SeedBatch(total=0, status=BatchStatus.VALIDATING), (Pool.SPOT,), id="new"),
        pytest.param(SeedBatch(total=0, status=BatchStatus.FAILED), (), id="never split"),
        pytest.param(SeedBatch(escalated=40), (Pool.SPOT, Pool.DEDICATED), id="some escalated"),
        pytest.param(SeedBatch(escalated=100), (Pool.DEDICATED,), id="all escalated"),
    ],
)
def test_recent_batch_lists_its_pools(
    database: Database, seed: SeedBatch, pools: tuple[Pool, ...]
) -> None:
    add_batch(database.engine("worker"), seed)
    assert _read(database).recent[0].pools == pools


def test_snapshot_has_backlogs_workers_engines_and_observations(database: Database) -> None:
    worker = database.engine("worker")
    for minutes in (9, 4):
        add_batch(worker, SeedBatch(status=BatchStatus.VALIDATING, age=minutes * MINUTE))
    drained = add_batch(worker, SeedBatch())
    add_batch(worker, SeedBatch())
    add_batch(worker, SeedBatch(status=BatchStatus.COMPLETED))
    with worker.begin() as connection:
        connection.execute(
            text("UPDATE batches SET drained_at = now() - interval '3 minutes' WHERE id = :id"),
            {"id": drained},
        )
        connection.execute(text("UPDATE batches SET drained_at = now() WHERE status = 'completed'"))
    add_worker(worker, "spot")
    add_worker(worker, "spot")
    add_worker(worker, "dedicated", expires_in=-1)
    with worker.begin() as connection:
        connection.execute(
            text(
                "UPDATE workers SET engine_state = 'open', engine_reason = 'HTTP 503', "
                "engine_since = now() - interval '2 minutes' "
                "WHERE id = (SELECT id FROM workers WHERE pool = 'spot' LIMIT 1)"
            )
        )
    LastSeenStore(worker).write([Observation(Component.FUNCTION, "split", 60.0, 5.0, "HTTP 500")])
    snapshot = _read(database)
    assert snapshot.unsplit.count == 2
    assert snapshot.unsplit.since is not None
    assert timedelta(minutes=9) <= snapshot.at - snapshot.unsplit.since < timedelta(minutes=10)
    assert snapshot.unfinalized.count == 1
    assert snapshot.unfinalized.since is not None
    assert 3 * MINUTE <= snapshot.at - snapshot.unfinalized.since < 4 * MINUTE
    assert (snapshot.workers(Pool.SPOT), snapshot.workers(Pool.DEDICATED)) == (2, 0)
    [lost_engine] = snapshot.lost_engines
    assert (lost_engine.worker, lost_engine.pool, lost_engine.state, lost_engine.reason) == (
        "host/1",
        Pool.SPOT,
        BreakerState.OPEN,
        "HTTP 503",
    )
    assert 2 * MINUTE <= snapshot.at - lost_engine.since < 3 * MINUTE
    last_seen = snapshot.last_seen[Component.FUNCTION, "split"]
    assert (last_seen.fails, last_seen.problem, last_seen.last_at) == (
        True,
        "HTTP 500",
        last_seen.failed_at,
    )


def test_snapshot_has_pauses(database: Database) -> None:
    engine = database.engine("operator")
    pause = PauseStore(engine).pause(Pool.SPOT, "ana")
    snapshot = _read(database)
    assert snapshot.pauses == (pause,)
    assert [snapshot.pause(FleetPool(DEFAULT_FLEET, pool)) for pool in Pool] == [pause, None]


def test_snapshot_counts_waiting_events_and_open_dead_letters(world: World) -> None:
    batch = fill(world, 3)
    world.run(
        "INSERT INTO outbox (id, tenant_id, type, subject, data, created_at) SELECT gen_random_uuid(), "
        "tenant_id, 't', 's', '{}', now() - interval '90 s' FROM queue WHERE batch_id = :batch",
        batch=batch,
    )
    world.run(
        "INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, state, ended_at) "
        "SELECT batch_id, line, tenant_id, 5, CASE WHEN line = 1 THEN 'discarded' ELSE 'open' END, "
        "CASE WHEN line = 1 THEN now() END FROM queue WHERE batch_id = :batch",
        batch=batch,
    )
    snapshot = _read(world.database)
    assert snapshot.events.count == 3
    assert snapshot.events.since is not None
    assert 90 <= (snapshot.at - snapshot.events.since).total_seconds() < 150
    assert snapshot.open_letters == {"default": 2}
    assert snapshot.letters == 2
    world.run("DELETE FROM outbox")
    assert _read(world.database).events == Backlog()


def test_count_of_open_letters_stops_at_its_limit(world: World) -> None:
    batch = fill(world, MAX_LISTED + 1)
    letters = """INSERT INTO dead_letters (batch_id, line, tenant_id, attempts)
        SELECT batch_id, line, tenant_id, 5 FROM queue WHERE batch_id = :batch"""
    world.run(letters, batch=batch)
    other = fill(world, 5, tenant=world.tenant("other"))
    world.run(letters, batch=other)
    assert _read(world.database).letters == MAX_LISTED
    nodes = executed_nodes(world.worker, LISTED_LETTERS)
    read = [node for node in nodes if node.get("Relation Name") == "dead_letters"]
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in read) <= MAX_LISTED


def test_snapshot_takes_fixed_number_of_statements(database: Database) -> None:
    engine = database.engine("operator")
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    SnapshotStore(engine).read()
    before = len(statements)
    for _ in range(5):
        add_batch(database.engine("worker"), SeedBatch())
    SnapshotStore(engine).read()
    assert (before, len(statements)) == (7, 14)


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        (EVENTS, "outbox"),
        (LETTERS, "dead_letters"),
        (LISTED_LETTERS, "dead_letters"),
        (RISKY, "batches"),
    ],
    ids=["events", "letters", "listed letters", "risky"],
)
def test_statement_does_not_scan_stored_history(world: World, statement: str, table: str) -> None:
    batch = fill(world, 5000)
    world.run(
        "INSERT INTO outbox (id, tenant_id, type, subject, data) SELECT gen_random_uuid(), tenant_id,"
        " 't', 's', '{}' FROM queue WHERE batch_id = :batch",
        batch=batch,
    )
    world.run(
        "INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, state, ended_at) "
        "SELECT batch_id, line, tenant_id, 5, 'discarded', now() FROM queue",
    )
    world.run(
        "INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, "
        "completion_window, status, created_at, deadline, completed_at) SELECT gen_random_uuid(), "
        "tenant_id, 'u', gen_random_uuid(), 'i', '/v1/embeddings', '24h', 'completed', now(), now(), "
        "now() FROM queue"
    )
    with world.database.engine("owner").begin() as connection:
        connection.execute(text(f"ANALYZE {analyzed(connection, [table])}"))
    nodes = plan_nodes(world.worker, statement, most=10)
    scans = [node for node in nodes if node.get("Relation Name") == table]
    max_seq_scans = {"outbox": 1, "dead_letters": 0, "batches": 0}[table]  # a LIMIT may end a scan
    assert scans
    assert sum(node["Node Type"] == "Seq Scan" for node in scans) <= max_seq_scans


def test_recent_batches_are_read_by_primary_key(database: Database) -> None:
    add_old_batches(database)
    plan = _plan(database, RECENT.replace(":limit", "20"))
    assert "Index Scan Backward using batches_pkey" in plan
    assert "Sort" not in plan


def test_totals_use_index_of_active_batches(database: Database) -> None:
    add_old_batches(database)
    assert "batches_active" in _plan(database, TOTALS)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("postgresql://lowtide_operator:wrong@{host}", id="wrong password"),
        pytest.param("postgresql://lowtide_operator:test@127.0.0.1:1/none", id="no server"),
        pytest.param("postgresql://lowtide_operator:test@{server}/postgres", id="no schema"),
    ],
)
def test_unreadable_database_raises_unavailable(database: Database, url: str) -> None:
    host = database.url("operator").rpartition("@")[2]
    engine = connect(url.format(host=host, server=host.partition("/")[0]), pool_size=1)
    try:
        with pytest.raises(Unavailable):
            SnapshotStore(engine).read()
    finally:
        engine.dispose()


def _plan(database: Database, statement: str) -> str:
    with database.engine("operator").connect() as connection:
        return "\n".join(connection.execute(text(f"EXPLAIN {statement}")).scalars())

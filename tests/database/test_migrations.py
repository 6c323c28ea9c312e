"""A database of the first release is migrated with everything in it, and copies nothing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

import lowtide.database
from lowtide.batches.detail_store import BatchDetailStore
from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from lowtide.core.runs import RUN_LINES, block_of
from lowtide.database.connections import connect
from lowtide.database.migrate import migrate
from lowtide.engines.outcomes import Usage
from lowtide.local.database import engine
from lowtide.local.files import OWNER
from lowtide.queue.claims import Finished
from lowtide.queue.rates import ConcurrencyStore
from lowtide.queue.store import QueueStore
from lowtide.tenants.store import ensure_default_tenant
from tests.conftest import API_KEY, PEPPER, Database
from tests.retention.days import PARTITIONED, day, new_id_of
from tests.worlds import World, done

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.local.database import EmbeddedPostgres

FILL = (
    """INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
         completion_window, status, created_at, deadline, total)
       VALUES (:batch, :tenant, 'u', :batch, 'k', '/v1/embeddings', '24h', 'in_progress', now(),
         now() + interval '1 day', 100)""",
    """INSERT INTO requests (batch_id, line, tenant_id, start, length, custom_id)
       SELECT :batch, n, :tenant, n * 100, 90, 'id-' || n FROM generate_series(1, 100) n""",
    """INSERT INTO custom_ids (batch_id, line, tenant_id, custom_id)
       SELECT batch_id, line, tenant_id, custom_id FROM requests WHERE batch_id = :batch""",
    """INSERT INTO queue (batch_id, tenant_id, deadline, available_at, queued_at, line, pool)
       SELECT batch_id, tenant_id, now() + interval '1 day', now(), now(), line, 'spot' FROM requests
       WHERE batch_id = :batch AND line > 60""",
    """INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line,
         input_tokens, output_tokens, status_code, attempts, interruptions, succeeded, escalated,
         dead_lettered, pool, request_id, body)
       SELECT batch_id, tenant_id, batch_id, now(), now(), line, 1, 2, 200, 1, 0, line > 20, false,
         line <= 20, 'spot', 'r', '{}' FROM requests WHERE batch_id = :batch AND line <= 60""",
    """INSERT INTO dead_letters (batch_id, line, tenant_id, attempts)
       SELECT batch_id, line, tenant_id, 5 FROM results WHERE batch_id = :batch AND line <= 20""",
    """INSERT INTO request_events (tenant_id, batch_id, line, kind, pool)
       SELECT tenant_id, batch_id, line, 'interrupted', 'spot' FROM results
       WHERE batch_id = :batch AND line <= 20""",
    """INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed, failed)
       VALUES (:batch, 'spot', :batch, :tenant, 40, 20)""",
)
LINES = 500
# What splits, retries, lost leases, escalations, fallbacks, fleets by model and claims leave behind.
WORK = (
    """INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
         completion_window, status, created_at, deadline, total, fleet)
       VALUES (:batch, :tenant, 'u', :batch, 'k', '/v1/embeddings', '24h', 'in_progress', now(),
         now() + interval '1 day', :lines, NULL)""",
    """INSERT INTO batch_fleets (batch_id, fleet, tenant_id, lines, split)
       VALUES (:batch, 'default', :tenant, :lines - 40, :lines - 40), (:batch, 'large', :tenant, 40, 40)""",
    """INSERT INTO requests (batch_id, line, tenant_id, start, length, custom_id)
       SELECT :batch, n, :tenant, n * 100, 90, 'id-' || n FROM generate_series(1, :lines) n""",
    """INSERT INTO queue (batch_id, tenant_id, deadline, available_at, queued_at, line, pool)
       SELECT batch_id, tenant_id, now() + interval '1 day',
         now() - (1000 - line) * interval '1 microsecond', now(), line, 'spot' FROM requests
       WHERE batch_id = :batch""",
    # The order of prefixes is not that of lines.
    """UPDATE queue SET available_at = now() - interval '1 s' - line * interval '1 microsecond'
       WHERE batch_id = :batch AND line BETWEEN 1 AND 20""",
    """UPDATE queue SET attempts = 1, available_at = now() + random() * interval '1 min'
       WHERE batch_id = :batch AND mod(line, 50) = 7""",
    """UPDATE queue SET attempts = 2, interruptions = 1, lost_leases = 1
       WHERE batch_id = :batch AND line IN (61, 62, 64)""",
    """UPDATE queue SET pool = 'dedicated', escalated = true, available_at = now()
       WHERE batch_id = :batch AND line BETWEEN 120 AND 140""",
    """UPDATE queue SET pool = 'dedicated', escalated = true WHERE batch_id = :batch AND line > 490""",
    """UPDATE queue SET fleet = 'large' WHERE batch_id = :batch AND mod(line, 5) = 0 AND line > 300""",
    """UPDATE queue SET queued_at = now() + interval '1 s'
       WHERE batch_id = :batch AND line BETWEEN 200 AND 210""",
    """WITH taken AS (DELETE FROM queue
         WHERE batch_id = :batch AND line IN (3, 4, 5, 61, 62, 130, 300, 305) RETURNING *)
       INSERT INTO claims (batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, line, attempts,
         interruptions, lost_leases, escalated, fleet, pool)
       SELECT batch_id, tenant_id, CASE WHEN mod(line, 2) = 0 THEN cast(:lease AS uuid) ELSE gen_random_uuid() END, deadline,
         queued_at, now(), line, attempts, interruptions, lost_leases, escalated, fleet, pool FROM taken""",
    """WITH ended AS (DELETE FROM queue WHERE batch_id = :batch AND line BETWEEN 21 AND 40 RETURNING *)
       INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
         output_tokens, status_code, attempts, interruptions, succeeded, escalated, dead_lettered, pool,
         request_id, body)
       SELECT batch_id, tenant_id, batch_id, now(), now(), line, 1, 2, 200, 1, 0, true, false, false,
         'spot', 'r', '{}' FROM ended""",
)


@pytest.fixture
def released(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    """An empty database of the first release; the template has created its roles."""
    assert template
    name = "first_release"
    admin = engine(postgres.superuser_url)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} OWNER {OWNER}"))
    made = Database(postgres, name, {})
    _upgrade(made, "0001")
    ensure_default_tenant(made.url("owner"), PEPPER, API_KEY)
    yield made
    for engine_ in made.engines.values():
        engine_.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _upgrade(database: Database, revision: str) -> None:
    """Migrate to a revision and no further."""
    owner = connect(database.url("owner"), pool_size=1)
    with owner.begin() as connection:
        config = Config()
        folder = Path(lowtide.database.__file__).parent / "migrations"
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    owner.dispose()


def _fill(world: World, batch: BatchId) -> None:
    for statement in FILL:
        world.run(statement, batch=batch, tenant=DEFAULT_TENANT)


def _columns(world: World) -> dict[str, str]:
    """Return the columns of tables and views; later releases add some."""
    rows = world.rows(
        "SELECT attrelid::regclass::text AS name, string_agg(quote_ident(attname), ', ' ORDER BY attnum)"
        " AS columns FROM pg_attribute WHERE attrelid = ANY(cast(:names AS regclass[])) AND attnum > 0"
        " GROUP BY attrelid",
        names=[*PARTITIONED, "queue", "tallies", "request_states"],
    )
    return {row.name: row.columns for row in rows}


def _contents(world: World, columns: dict[str, str]) -> dict[str, list[Any]]:
    return {
        name: world.rows(f"SELECT ({each})::text FROM {name} ORDER BY 1")  # noqa: S608
        for name, each in columns.items()
    }


def _files(world: World, tables: tuple[str, ...]) -> set[int]:
    """Return the files in which tables are stored."""
    found = world.rows(
        "SELECT relfilenode FROM pg_class WHERE relname = ANY(:names)", names=list(tables)
    )
    return {row.relfilenode for row in found}


def test_filled_database_is_migrated_without_copying(released: Database) -> None:
    world = World(released)
    batches = [new_id_of(40), BatchId(new_id())]
    for batch in batches:
        _fill(world, batch)
    columns = _columns(world)
    before, files = _contents(world, columns), _files(world, PARTITIONED)
    last_event = world.value("SELECT max(id) FROM request_events")
    migrate(released.url("owner"), {})
    assert _contents(world, columns) == before
    assert all(before.values())
    assert _files(world, tuple(f"{table}_{day(0)}" for table in PARTITIONED)) == files
    assert (
        world.rows("SELECT DISTINCT low FROM data_partitions ORDER BY low NULLS FIRST")[0].low
        is None
    )
    # Work goes on in the first partition, and starts in others.
    later = new_id_of(-1)
    assert world.split(world.new_batch(id=later), 3)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 200)
    assert len(claims) == 40 + 40 + 3
    world.queue.settle(
        lease, [done(claim, succeeded=False, dead_letter=True) for claim in claims], []
    )
    assert (
        world.value("SELECT min(id) FROM request_events WHERE kind = 'dead_lettered'") > last_event
    )
    assert world.value("SELECT count(*) FROM dead_letters WHERE error_code = 'http_400'") == 83
    for batch in (*batches, later):
        assert BatchDetailStore(world.api).details(DEFAULT_TENANT, batch).batch.outcomes.failed


def test_queue_becomes_runs_without_a_request_lost_or_made(released: Database) -> None:
    world = World(released)
    _upgrade(released, "0011")
    batches = [BatchId(new_id()), BatchId(new_id())]
    lease = new_id()
    for batch in batches:
        for statement in WORK:
            values = {"batch": batch, "tenant": DEFAULT_TENANT, "lines": LINES, "lease": lease}
            world.run(statement, **values)
    _fill(world, BatchId(new_id()))
    queue = "SELECT * FROM queue ORDER BY batch_id, line"
    claims = "SELECT to_json(c) AS request FROM claims c ORDER BY batch_id, line"
    states = "SELECT * FROM request_states ORDER BY batch_id, line"
    before = [world.rows(sql) for sql in (queue, claims, states)]
    assert [len(rows) for rows in before] == [2 * (LINES - 28) + 40, 2 * 8, 2 * LINES + 100]
    migrate(released.url("owner"), {})
    queued, claimed, stated = (world.rows(sql) for sql in (queue, claims, states))
    assert (claimed, stated) == tuple(before[1:])
    # A run is available when the first of its lines was.
    fields = [name for name in queued[0]._fields if name != "available_at"]
    assert [[getattr(row, name) for name in fields] for row in queued] == [
        [getattr(row, name) for name in fields] for row in before[0]
    ]
    earlier = [
        was.available_at - row.available_at for was, row in zip(before[0], queued, strict=True)
    ]
    assert timedelta() <= min(earlier) <= max(earlier) < timedelta(microseconds=RUN_LINES)
    for table in ("queued_runs", "claimed_runs"):
        runs = world.rows(
            f"SELECT *, lower(lines) AS first, upper(lines) - 1 AS last, line_count(lines) AS counted FROM {table}"  # noqa: S608
        )
        assert all(run.line == run.first and run.size == run.counted for run in runs)
        assert all(block_of(run.first) == block_of(run.last) for run in runs)
    joined = world.value("SELECT count(*) FROM queued_runs WHERE batch_id = :b", b=batches[0])
    assert joined < LINES / 4


def test_migrated_queue_is_claimed_and_settled(released: Database) -> None:
    world = World(released)
    _upgrade(released, "0011")
    lease = world.queue.open_lease(Pool.SPOT, "w")
    batch = BatchId(new_id())
    for statement in WORK:
        values = {"batch": batch, "tenant": DEFAULT_TENANT, "lines": LINES, "lease": lease}
        world.run(statement, **values)
    migrate(released.url("owner"), {})
    # The worker of even lines lives on, those of odd ones are lost.
    running = world.rows(
        "SELECT line FROM claims WHERE lease_id = :lease ORDER BY line", lease=lease
    )
    assert [row.line for row in running] == [4, 62, 130, 300]
    results = [Finished(batch, row.line, True, 1, Usage(3, 5)) for row in running]
    assert world.queue.settle(lease, results, []).finished == 4
    assert world.sweep() == 4
    world.run("UPDATE queued_runs SET available_at = now()")
    for fleet in (DEFAULT_FLEET, "large"):
        queue = QueueStore(world.worker, new_id=new_id, lease_duration=30.0, fleet=fleet)
        for pool in Pool:
            lease = queue.open_lease(pool, "w")
            while claims := queue.claim(lease, pool, 33):
                assert queue.settle(lease, [done(each) for each in claims], []).finished == len(
                    claims
                )
    assert world.lines("results", batch) == list(range(1, LINES + 1))
    assert world.drained(batch) == 1


def test_migration_covers_batches_of_a_clock_that_was_ahead(released: Database) -> None:
    world = World(released)
    ahead = new_id_of(-9)
    _fill(world, ahead)
    migrate(released.url("owner"), {})
    (first,) = world.rows(
        "SELECT DISTINCT name, high FROM data_partitions WHERE parent = 'requests' AND low IS NULL"
    )
    assert first.name == f"requests_{day(-9)}"
    assert world.value("SELECT count(*) FROM requests") == 100


def test_other_tenants_see_nothing_after_the_migration(released: Database) -> None:
    world = World(released)
    _fill(world, BatchId(new_id()))
    migrate(released.url("owner"), {})
    other = world.tenant("other")
    with released.engine("api").begin() as connection:
        connection.execute(
            text("SELECT set_config('lowtide.tenant', :it, true)"), {"it": str(other)}
        )
        for table in PARTITIONED:
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == 0  # noqa: S608


def test_only_workers_record_requests_in_flight_after_the_migration(released: Database) -> None:
    world = World(released)
    migrate(released.url("owner"), {})
    place = FleetPool(DEFAULT_FLEET, Pool.SPOT)
    assert ConcurrencyStore(world.worker, place, "").read() is None
    ConcurrencyStore(world.worker, place, "").record(96)
    for role in ("api", "operator"):
        reader = ConcurrencyStore(released.engine(role), place, "")
        assert reader.read() == 96
        with pytest.raises(DatabaseError, match="permission denied"):
            reader.record(1)
    with pytest.raises(DatabaseError, match="permission denied"):
        ConcurrencyStore(released.engine("autoscaler"), place, "").read()

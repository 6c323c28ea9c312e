"""A database of the first release is migrated with everything in it, and copies nothing."""

from __future__ import annotations

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
from lowtide.database.connections import connect
from lowtide.database.migrate import migrate
from lowtide.local.database import engine
from lowtide.local.files import OWNER
from lowtide.queue.rates import ConcurrencyStore
from lowtide.tenants.store import ensure_default_tenant
from tests.conftest import API_KEY, PASSWORD, PEPPER, Database
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


@pytest.fixture
def released(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    """An empty database of the first release; the template has created its roles."""
    assert template
    name = "first_release"
    admin = engine(postgres.superuser_url)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} OWNER {OWNER}"))
    owner = connect(postgres.url(OWNER, PASSWORD, name), pool_size=1)
    with owner.begin() as connection:
        config = Config()
        folder = Path(lowtide.database.__file__).parent / "migrations"
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    owner.dispose()
    made = Database(postgres, name, {})
    ensure_default_tenant(made.url("owner"), PEPPER, API_KEY)
    yield made
    for engine_ in made.engines.values():
        engine_.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


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

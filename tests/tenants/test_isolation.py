"""Row-level security, and the least privilege of each role and tenant."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.core.ids import DEFAULT_TENANT, PartId, TenantId, UploadId, new_id
from lowtide.core.pools import Pool
from lowtide.database.connections import acting_for
from lowtide.objects.data_keys import WrappedKey, add_key
from lowtide.objects.names import DataKeyId
from lowtide.queue.claims import Returned
from lowtide.search.indexing import SearchIndexer
from lowtide.uploads.model import Part, PartedUpload, UploadStatus
from lowtide.uploads.store import UploadStore
from tests.worlds import MAX_LOST_LEASES, World, done, tables

if TYPE_CHECKING:
    from sqlalchemy import Connection

READABLE_BY_API = (
    "files", "batches", "requests", "queued_runs", "claimed_runs", "queue", "claims", "results", "tallies", "request_events",
    "dead_letters", "outbox", "orphan_objects", "request_states", "batch_states", "batch_terms",
    "custom_ids", "search_backlog", "uploads", "upload_parts", "segments", "buckets",
    "data_keys", "batch_fleets", "usage_days", "exhausted_quotas",
)  # fmt: skip
# Workers do not read it; test_usage.py tests it.
READABLE_BY_API_ALONE = "request_rates"
HIDDEN_FROM_API = ("api_keys", "workers", "audit_log", "audit_outbox", "erasures")


@dataclass
class Two:
    """Two tenants, each with a row in every table that belongs to tenants."""

    world: World
    mine: TenantId
    theirs: TenantId


def _fill(world: World, tenant: TenantId) -> None:
    batch = world.batch(8, tenant=tenant, due_in=1000)
    for _ in range(MAX_LOST_LEASES):
        lease = world.queue.open_lease(Pool.SPOT, "w")
        world.queue.claim(lease, Pool.SPOT, 1)
        world.expire_lease(lease)
        world.sweep()
        world.run(
            "UPDATE queued_runs SET available_at = now() WHERE batch_id = :batch", batch=batch
        )
    lease = world.queue.open_lease(Pool.SPOT, "w")
    first, second, _ = world.queue.claim(lease, Pool.SPOT, 3)
    world.queue.settle(
        lease, [done(first)], [Returned(batch, second.line, "x", 9999.0, failed=True)]
    )
    world.escalate(batch, 1)
    world.run(
        "INSERT INTO orphan_objects VALUES (:key, :tenant, now())", key=str(tenant), tenant=tenant
    )
    _upload(world, tenant)
    world.run(
        "INSERT INTO batch_fleets (batch_id, fleet, tenant_id, lines) VALUES (:batch, 'f', :tenant, 1)",
        batch=batch,
        tenant=tenant,
    )
    world.run(
        "INSERT INTO exhausted_quotas VALUES (:tenant, 'tokens_per_day', now())", tenant=tenant
    )
    with world.database.engine("operator").begin() as connection:
        connection.execute(
            text("INSERT INTO buckets VALUES (:tenant, 's3://b/', true, true, 'c', now(), 'op')"),
            {"tenant": tenant},
        )
    with acting_for(world.api, tenant) as connection:
        add_key(connection, WrappedKey(DataKeyId(tenant, new_id()), b"wrapped"))
    # The delay keeps these requests from being claimed while the other tenant is filled.
    world.run("UPDATE queued_runs SET available_at = now() + interval '1 h'")


def _upload(world: World, tenant: TenantId) -> None:
    uploads, now = UploadStore(world.api), datetime.now(UTC)
    upload = PartedUpload(
        UploadId(new_id()),
        tenant,
        "a",
        1,
        None,
        UploadStatus.PENDING,
        now,
        now + timedelta(hours=1),
    )
    uploads.create(upload)
    uploads.add_part(upload, Part(PartId(new_id()), upload.id, 1, 0, "parts/x", now))


@pytest.fixture
def two(world: World) -> Two:
    """Fill both tenants."""
    theirs = world.tenant("theirs")
    for tenant in (DEFAULT_TENANT, theirs):
        _fill(world, tenant)
    SearchIndexer(world.worker).index(limit=16)
    world.run("INSERT INTO search_backlog SELECT id, tenant_id FROM batches")
    with world.database.engine("operator").begin() as connection:
        for tenant in (DEFAULT_TENANT, theirs):
            connection.execute(
                text(
                    "INSERT INTO audit_log (tenant_id, actor, action, subject) VALUES (:t, 'a', 'b', 'c')"
                ),
                {"t": tenant},
            )
    return Two(world, DEFAULT_TENANT, theirs)


def _tenants(connection: Connection, table: str) -> set[object]:
    return set(connection.execute(text(f"SELECT tenant_id FROM {table}")).scalars())  # noqa: S608


@pytest.mark.parametrize("table", READABLE_BY_API)
def test_tenant_reads_only_its_own_rows(two: Two, table: str) -> None:
    with two.world.database.engine("operator").begin() as connection:
        assert _tenants(connection, table) == {two.mine, two.theirs}
    for tenant in (two.mine, two.theirs):
        with acting_for(two.world.api, tenant) as connection:
            assert _tenants(connection, table) == {tenant}


@pytest.mark.parametrize("table", READABLE_BY_API)
@pytest.mark.parametrize("setting", [None, ""], ids=["never set", "empty"])
def test_session_without_tenant_reads_nothing(two: Two, table: str, setting: str | None) -> None:
    with two.world.api.begin() as connection:
        if setting is not None:
            connection.execute(
                text("SELECT set_config('lowtide.tenant', :v, true)"), {"v": setting}
            )
        assert _tenants(connection, table) == set()


@pytest.mark.parametrize("table", HIDDEN_FROM_API)
def test_api_role_cannot_read_hidden_tables(two: Two, table: str) -> None:
    with (
        pytest.raises(DBAPIError, match="permission denied"),
        acting_for(two.world.api, two.mine) as connection,
    ):
        connection.execute(text(f"SELECT 1 FROM {table}"))  # noqa: S608


@pytest.mark.parametrize(
    "table",
    ["files", "batches", "queued_runs", "outbox", "dead_letters", "uploads", "orphan_objects"],
)
def test_tenant_cannot_change_rows_of_another_tenant(two: Two, table: str) -> None:
    update = f"UPDATE {table} SET tenant_id = tenant_id WHERE tenant_id = :theirs"  # noqa: S608
    delete = f"DELETE FROM {table} WHERE tenant_id = :theirs"  # noqa: S608
    discard = (
        "UPDATE dead_letters SET state = 'discarded', ended_at = now() WHERE tenant_id = :theirs"
    )
    statements = {
        "files": (update, delete),
        "batches": (update,),
        "uploads": (update,),
        "orphan_objects": (
            "UPDATE orphan_objects SET due_at = now() WHERE tenant_id = :theirs",
            delete,
        ),
        "dead_letters": (discard,),
    }.get(table, (delete,))
    before = two.world.contents()
    with acting_for(two.world.api, two.mine) as connection:
        for statement in statements:
            assert connection.execute(text(statement), {"theirs": two.theirs}).rowcount == 0
    assert two.world.contents() == before


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("UPDATE files SET tenant_id = :theirs", id="move a file"),
        pytest.param("UPDATE batches SET tenant_id = :theirs", id="move a batch"),
        pytest.param(
            "INSERT INTO outbox VALUES (gen_random_uuid(), :theirs, 'x', 'x', '{}')", id="event"
        ),
        pytest.param(
            "INSERT INTO audit_log (tenant_id, actor, action, subject) VALUES (:theirs, 'a', 'b', 'c')",
            id="audit entry",
        ),
        pytest.param(
            "INSERT INTO files SELECT gen_random_uuid(), :theirs, purpose, filename, bytes, lines, "
            "sha256, object_key, status FROM files",
            id="file",
        ),
        pytest.param("UPDATE uploads SET tenant_id = :theirs", id="move an upload"),
        pytest.param(
            "INSERT INTO upload_parts SELECT gen_random_uuid(), upload_id, :theirs, bytes, checksum, "
            "object_key, created_at FROM upload_parts",
            id="part",
        ),
    ],
)
def test_tenant_cannot_write_rows_for_another_tenant(two: Two, statement: str) -> None:
    with (
        pytest.raises(DBAPIError, match="row-level security"),
        acting_for(two.world.api, two.mine) as connection,
    ):
        connection.execute(text(statement), {"theirs": two.theirs})


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM batches", "INSERT INTO queued_runs SELECT * FROM queued_runs", "UPDATE queued_runs SET pool = 'spot'",
        "DELETE FROM claimed_runs", "DELETE FROM results", "UPDATE results SET body = ''",
        "DELETE FROM audit_log", "DELETE FROM requests", "UPDATE tallies SET completed = 0",
        "INSERT INTO dead_letters SELECT * FROM dead_letters", "DELETE FROM dead_letters",
        "UPDATE dead_letters SET error_code = ''", "UPDATE dead_letters SET tenant_id = tenant_id",
        "DELETE FROM uploads", "DELETE FROM upload_parts", "UPDATE upload_parts SET bytes = 0",
        "INSERT INTO buckets SELECT * FROM buckets", "UPDATE buckets SET may_write = true", "DELETE FROM buckets",
        "UPDATE orphan_objects SET object_key = 'x'", "TRUNCATE files", "CREATE TABLE mine (id int)", "SET ROLE lowtide_worker",
        "ALTER TABLE files DISABLE ROW LEVEL SECURITY", "SELECT pg_read_file('/etc/passwd')",
    ],
)  # fmt: skip
def test_api_role_cannot_run_privileged_statements(two: Two, statement: str) -> None:
    with (
        pytest.raises(DBAPIError, match=r"permission denied|must be owner"),
        acting_for(two.world.api, two.mine) as connection,
    ):
        connection.execute(text(statement))


def test_pooled_connection_does_not_keep_tenant(two: Two) -> None:
    engine = two.world.own_engine("api")
    sessions = set()
    for tenant in (two.mine, two.theirs) * 4:
        with acting_for(engine, tenant) as connection:
            sessions.add(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            assert _tenants(connection, "files") == {tenant}
        with engine.begin() as connection:
            sessions.add(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            assert _tenants(connection, "files") == set()
        with pytest.raises(DBAPIError), acting_for(engine, tenant) as connection:
            connection.execute(text("SELECT 1 / 0"))
        with engine.begin() as connection:
            assert _tenants(connection, "files") == set()
    assert len(sessions) == 1


PARTITIONS_OF_RESULTS = "SELECT name FROM data_partitions WHERE parent = 'results'"
# The owner's own rights are not listed.
GRANTS_ON_PARTITIONS_OF_RESULTS = f"""
SELECT grantee, privilege_type FROM information_schema.role_table_grants
WHERE table_name IN ({PARTITIONS_OF_RESULTS}) AND grantee <> current_user
"""  # noqa: S608
TENANT_TABLES = "SELECT table_name FROM information_schema.columns WHERE column_name = 'tenant_id'"


def test_every_tenant_table_has_forced_row_security(world: World) -> None:
    with world.database.engine("owner").begin() as connection:
        all_tables = set(tables(connection))
        tenant_tables = all_tables & set(connection.execute(text(TENANT_TABLES)).scalars())
        secured = connection.execute(
            text("SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity")
        )
        of_results = set(connection.execute(text(PARTITIONS_OF_RESULTS)).scalars())
    assert of_results
    assert tenant_tables | {"tenants", "signed_out"} == {*secured.scalars(), *of_results}
    assert tenant_tables >= set(READABLE_BY_API) & all_tables


def test_partitions_of_results_are_read_through_their_parent_alone(world: World) -> None:
    with world.database.engine("owner").begin() as connection:
        grants = connection.execute(text(GRANTS_ON_PARTITIONS_OF_RESULTS)).all()
    assert {(row.grantee, row.privilege_type) for row in grants} == {("lowtide_worker", "INSERT")}


def test_readable_tables_are_all_tested(world: World) -> None:
    with world.api.begin() as connection:
        readable = {
            table
            for table in connection.execute(text(TENANT_TABLES)).scalars()
            if connection.execute(
                text("SELECT has_table_privilege(:table, 'SELECT')"), {"table": table}
            ).scalar_one()
        }
    assert readable == {*READABLE_BY_API, READABLE_BY_API_ALONE}


@pytest.mark.parametrize("role", ["api", "worker", "operator", "autoscaler"])
def test_login_role_cannot_bypass_row_security(world: World, role: str) -> None:
    with world.database.engine(role).begin() as connection:
        row = connection.execute(
            text(
                "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
            )
        ).one()
    assert tuple(row) == (False, False, False, False)


def test_autoscaler_reads_only_queue_claims_and_wanted_replicas(two: Two) -> None:
    engine = two.world.database.engine("autoscaler")
    with engine.begin() as connection:
        readable = {
            table
            for table in [*tables(connection), "queue", "claims", "request_states", "batch_states"]
            if connection.execute(
                text("SELECT has_table_privilege(:table, 'SELECT')"), {"table": table}
            ).scalar_one()
        }
        assert connection.execute(text("SELECT count(*) FROM queue")).scalar_one() > 0
    assert readable == {"queued_runs", "claimed_runs", "queue", "claims", "wanted_replicas"}
    for statement in (
        "DELETE FROM queued_runs",
        "UPDATE claimed_runs SET pool = 'x'",
        "SELECT authenticate('x')",
    ):
        with pytest.raises(DBAPIError, match="permission denied"), engine.begin() as connection:
            connection.execute(text(statement))


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO buckets SELECT * FROM buckets",
        "UPDATE buckets SET may_write = true",
        "DELETE FROM buckets",
    ],
)
def test_only_operators_register_buckets(two: Two, statement: str) -> None:
    with (
        pytest.raises(DBAPIError, match="permission denied"),
        two.world.worker.begin() as connection,
    ):
        connection.execute(text(statement))


def test_worker_cannot_read_keys_or_audit_log(two: Two) -> None:
    for table in ("api_keys", "audit_log"):
        with (
            pytest.raises(DBAPIError, match="permission denied"),
            two.world.worker.begin() as connection,
        ):
            connection.execute(text(f"SELECT tenant_id FROM {table}"))  # noqa: S608

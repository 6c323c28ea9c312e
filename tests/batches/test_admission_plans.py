"""Query plans of admission and polling: active batches are read by index, never by a full scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.tenants.store import USE
from tests.plans import plan_nodes
from tests.worlds import World, emptied

if TYPE_CHECKING:
    from tests.conftest import Database

FINISHED, ACTIVE, LEASES, TENANTS = 5000, 800, 5, 40
BIG = ("batches", "tallies", "files")
BODY = "SELECT prosrc FROM pg_proc WHERE proname = 'open_work'"


@pytest.fixture(scope="module")
def loaded(shared_database: Database) -> World:
    """800 active and 5,000 finished batches of 40 tenants, each with the tallies of five leases."""
    world = World(emptied(shared_database))
    others = [world.tenant(f"other {number}") for number in range(1, TENANTS)]
    values = {"tenants": [DEFAULT_TENANT, *others], "file": world.file().id, "leases": LEASES}
    with shared_database.engine("worker").begin() as connection:
        connection.execute(
            text("""
            INSERT INTO files (id, tenant_id, purpose, filename, bytes, lines, sha256, object_key,
              status, created_at)
            SELECT gen_random_uuid(), :tenant, 'batch', 'f', 1, 1, '', 'k', 'processed', now()
            FROM generate_series(1, :count)"""),
            {"tenant": DEFAULT_TENANT, "count": FINISHED},
        )
        for status, count in (("completed", FINISHED), ("in_progress", ACTIVE)):
            connection.execute(
                text("""
                INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
                  completion_window, status, created_at, deadline, total)
                SELECT gen_random_uuid(), (cast(:tenants AS uuid[]))[1 + mod(n, 40)], 'u', :file, 'k',
                  '/v1/embeddings', '24h', :status, now(), now() + n * interval '1 s', 1000
                FROM generate_series(1, :count) AS n"""),
                values | {"status": status, "count": count},
            )
        connection.execute(
            text("""
            INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed)
            SELECT id, 'spot', gen_random_uuid(), tenant_id, 1
            FROM batches, generate_series(1, :leases)"""),
            values,
        )
    with shared_database.engine("owner").begin() as connection:
        connection.execute(text(f"ANALYZE {', '.join(BIG)}"))
    return world


def _scans(nodes: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(node["Node Type"], node["Relation Name"]) for node in nodes if "Relation Name" in node}


def test_tenant_use_reads_active_batches_by_index(loaded: World) -> None:
    nodes = plan_nodes(loaded.database.engine("operator"), USE, tenant=DEFAULT_TENANT)
    assert {node.get("Index Name") for node in nodes} >= {
        "batches_active_of_tenant",
        "tallies_pkey",
    }
    assert not {("Seq Scan", name) for name in BIG} & _scans(nodes)
    with loaded.database.engine("operator").begin() as connection:
        used = connection.execute(text(USE), {"tenant": DEFAULT_TENANT}).one()
    assert (used.batches, used.lines) == (ACTIVE // TENANTS, ACTIVE // TENANTS * (1000 - LEASES))


def test_open_work_reads_active_batches_by_index(loaded: World) -> None:
    owner = loaded.database.engine("owner")
    with owner.begin() as connection:
        body = connection.execute(text(BODY)).scalar_one()
    nodes = plan_nodes(owner, body)
    indexes = {node.get("Index Name") for node in nodes}
    assert indexes & {"batches_active", "batches_active_of_tenant"}
    assert "tallies_pkey" in indexes
    assert not {("Seq Scan", name) for name in BIG} & _scans(nodes)
    with loaded.api.begin() as connection:
        rows = connection.execute(text("SELECT * FROM open_work()")).all()
    assert [row.lines for row in rows] == [1000 - LEASES] * ACTIVE

"""Query plans of searches: every condition is one of an index, for a tenant and for operators."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.retention.partitions import DAYS_AHEAD
from lowtide.search import indexing
from lowtide.search.model import SearchQuery, parse_query
from lowtide.search.store import OF_ALL, OF_TENANT
from lowtide.tenants.sign_in import reading_as
from tests.plans import analyzed, nodes_of
from tests.worlds import World, emptied

if TYPE_CHECKING:
    from lowtide.core.ids import TenantId
    from tests.conftest import Database

BATCHES, LINES, TENANTS = 60, 500, 3
BIG = {"custom_ids", "batch_terms", "requests", "batches", "files", "search_backlog"}
LIMIT = 21


@pytest.fixture(scope="module")
def loaded(shared_database: Database) -> World:
    """30,000 requests of 60 batches of three tenants, and 3,000 batches and files without any."""
    world = World(emptied(shared_database))
    tenants = [DEFAULT_TENANT, *(world.tenant(f"plans {n}") for n in range(1, TENANTS))]
    ids = [str(new_id()) for _ in range(BATCHES)]
    values = {"tenants": tenants, "ids": ids, "lines": LINES}
    for statement in (
        """INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
             completion_window, status, created_at, deadline, total)
           SELECT id, (cast(:tenants AS uuid[]))[1 + mod(n, 3)], 'u', gen_random_uuid(), 'k',
             '/v1/embeddings', '24h', 'in_progress', now(), now(), :lines
           FROM unnest(cast(:ids AS uuid[])) WITH ORDINALITY AS b (id, n)""",
        """INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
             completion_window, status, created_at, deadline)
           SELECT gen_random_uuid(), (cast(:tenants AS uuid[]))[1 + mod(n, 3)], 'u',
             gen_random_uuid(), 'k', '/v1/embeddings', '24h', 'completed', now(), now()
           FROM generate_series(1, 3000) n""",
        """INSERT INTO files (id, tenant_id, purpose, filename, bytes, lines, sha256, object_key,
             status, created_at)
           SELECT input_file_id, tenant_id, 'batch', 'f', 1, 1, '', 'k', 'processed', now()
           FROM batches""",
        """INSERT INTO requests SELECT id, line, tenant_id, line * 100, 90, 'request-' || line
           FROM batches, generate_series(1, total) AS line""",
        """INSERT INTO custom_ids SELECT batch_id, line, tenant_id, custom_id FROM requests
           ORDER BY batch_id, custom_id""",
        "INSERT INTO search_backlog SELECT id, tenant_id FROM batches WHERE total > 0 LIMIT 2",
    ):
        world.run(statement, **values)
    with world.database.engine("operator").begin() as connection:
        connection.execute(
            text("""INSERT INTO batch_terms SELECT id, tenant_id, field, 'user-' || right(id::text, 3)
               FROM batches, unnest('{user,metadata.team}'::text[]) field""")
        )
    with shared_database.engine("owner").begin() as connection:
        connection.execute(text(f"ANALYZE {analyzed(connection, BIG)}"))
    return world


def _explain(world: World, scope: TenantId | None, name: str, **values: Any) -> dict[str, Any]:
    """Return the plan of a lookup as the API, or with scope None as operators, run it."""
    statements, role = (OF_ALL, "operator") if scope is None else (OF_TENANT, "api")
    if scope is not None:
        values["tenant"] = scope
    with reading_as(world.database.engine(role), scope) as connection:
        explain = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statements[name]}")
        output = connection.execute(explain, values | {"limit": LIMIT}).scalar_one()
    plan: dict[str, Any] = (output if isinstance(output, list) else json.loads(output))[0]["Plan"]
    return plan


def _query(world: World, of: str) -> tuple[SearchQuery, dict[str, Any]]:
    """Return a query and the values of its ids."""
    batch = BatchId(world.value("SELECT min(id::text)::uuid FROM batches WHERE total > 0"))
    query = parse_query(
        {"batches": f"batch_{batch.hex[:8]}", "files": f"file-{batch.hex[:8]}",
         "requests": f"batch_req_{batch.hex[:8]}", "custom_ids": "request-17",
         "terms": "user-a"}[of]
    )  # fmt: skip
    ids = query.batches or query.files or (query.requests and query.requests.batches)
    values: dict[str, Any] = {"text": query.text, "beyond": query.beyond}
    if ids:
        values = {"first": ids.first, "last": ids.last}
    if query.requests:
        values |= {"first_line": query.requests.first, "last_line": query.requests.last}
    return query, values


CONDITIONS = {
    "batches": ("batches", ("id >=", "id <=")),
    "files": ("files", ("id >=", "id <=")),
    "requests": ("requests", ("batch_id =", "line >=", "line <=")),
    "custom_ids": ("custom_ids", ("tenant_id =", "custom_id >=", "custom_id <")),
    "terms": ("batch_terms", ("tenant_id =", "value >=", "value <")),
}


@pytest.mark.parametrize("scope", [DEFAULT_TENANT, None], ids=["tenant", "operator"])
@pytest.mark.parametrize("name", CONDITIONS)
def test_lookup_is_a_condition_of_an_index(
    loaded: World, name: str, scope: TenantId | None
) -> None:
    nodes = nodes_of(_explain(loaded, scope, name, **_query(loaded, name)[1]))
    table, conditions = CONDITIONS[name]
    scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} & BIG
    assert scanned <= {"search_backlog"}  # two rows
    walks = [node for node in nodes if node.get("Relation Name") == table and "Index Cond" in node]
    assert walks
    for walk in walks:
        for condition in conditions:
            assert condition in walk["Index Cond"]
        assert walk.get("Rows Removed by Filter", 0) == 0
        assert walk["Actual Rows"] <= LIMIT


@pytest.mark.parametrize("scope", [DEFAULT_TENANT, None], ids=["tenant", "operator"])
@pytest.mark.parametrize("name", CONDITIONS)
def test_lookup_sorts_pages_only(loaded: World, name: str, scope: TenantId | None) -> None:
    loaded.run("DELETE FROM search_backlog")
    nodes = nodes_of(_explain(loaded, scope, name, **_query(loaded, name)[1]))
    sorts = [node for node in nodes if node["Node Type"] in {"Sort", "Incremental Sort"}]
    rows = [child["Actual Rows"] for node in sorts for child in node["Plans"]]
    # The requests of an id's start are up to a page of each batch.
    bound = LIMIT * LIMIT if name == "requests" else LIMIT * TENANTS
    assert all(count <= bound for count in rows)


def test_text_that_matches_nothing_reads_few_pages(loaded: World) -> None:
    loaded.run("DELETE FROM search_backlog")
    # Earlier tests may have made partitions of more days.
    days = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'custom_ids'::regclass"
    partitions = loaded.value(days)
    assert partitions > DAYS_AHEAD
    for scope, tenants in ((DEFAULT_TENANT, 1), (None, TENANTS)):
        for name in ("custom_ids", "terms"):
            plan = _explain(loaded, scope, name, text="nothing", beyond="nothinh")
            pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            # An index is three pages deep, and each tenant's part of it is searched.
            assert pages <= 20 + 3 * partitions * tenants


def test_indexing_reads_one_batch(loaded: World) -> None:
    loaded.run(
        "INSERT INTO search_backlog SELECT id, tenant_id FROM batches WHERE total > 0 LIMIT 2"
    )
    with loaded.worker.begin() as connection:
        explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {indexing.INDEX}")
        output = connection.execute(explain).scalar_one()
        connection.rollback()
    plan = (output if isinstance(output, list) else json.loads(output))[0]["Plan"]
    walks = [node for node in nodes_of(plan) if node.get("Relation Name") == "requests"]
    (walk,) = [walk for walk in walks if walk["Actual Loops"]]
    assert "Scan" in walk["Node Type"] != "Seq Scan"
    assert (walk["Actual Rows"], walk.get("Rows Removed by Filter", 0)) == (LINES, 0)

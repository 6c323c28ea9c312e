"""Query plans of the statements on dead letters: an index each, and no sort of all letters."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.database.connections import acting_for
from lowtide.dead_letters import requeue_store
from lowtide.dead_letters import store as dead_letters_store
from lowtide.dead_letters.model import LetterFilter, LetterState
from lowtide.dead_letters.store import matches
from lowtide.local.database import engine as admin_engine
from lowtide.local.files import SUPERUSER
from lowtide.reruns import store as rerun_store
from tests.plans import analyzed, executed_nodes, plan_nodes, stored
from tests.worlds import World, emptied

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

BATCHES, LINES, STALE_LINES = 40, 1000, 5000
BIG = {"dead_letters", "requests", "results", "batches"}


@pytest.fixture(scope="module")
def loaded(shared_database: Database) -> World:
    """40,000 letters of two tenants: one in a hundred open, one in fifty timed out."""
    world = World(emptied(shared_database))
    other = world.tenant("other")
    ids = [str(new_id()) for _ in range(BATCHES)]
    values = {"tenants": [DEFAULT_TENANT, other], "ids": ids, "lines": LINES}
    for statement in (
        """INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
             completion_window, status, created_at, deadline)
           SELECT id, (cast(:tenants AS uuid[]))[1 + mod(n, 2)], 'u', gen_random_uuid(), 'k',
             '/v1/embeddings', '24h', 'completed', now(), now()
           FROM unnest(cast(:ids AS uuid[])) WITH ORDINALITY AS b (id, n)""",
        """INSERT INTO requests SELECT id, line, tenant_id, line * 100, 90, line::text
           FROM batches, generate_series(1, :lines) AS line""",
        """INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line,
             input_tokens, output_tokens, status_code, attempts, interruptions, succeeded, escalated,
             dead_lettered, pool, request_id, body)
           SELECT batch_id, tenant_id, batch_id, now(), now(), line, 0, 0, 500, 5, 0, false, false,
             true, 'spot', 'r', '{}' FROM requests""",
        """INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, error_code, at, state,
             ended_at)
           SELECT batch_id, line, tenant_id, 5,
             CASE WHEN mod(line, 50) = 0 THEN 'timeout' ELSE 'http_500' END,
             now() - line * interval '1 s',
             CASE WHEN mod(line, 100) = 0 THEN 'open' ELSE 'discarded' END,
             CASE WHEN mod(line, 100) = 0 THEN NULL ELSE now() END FROM requests""",
    ):
        world.run(statement, **values)
    with shared_database.engine("owner").begin() as connection:
        connection.execute(text(f"ANALYZE {analyzed(connection, BIG)}"))
    return world


def _any_batch(world: World) -> BatchId:
    return BatchId(
        world.value(
            "SELECT min(id::text)::uuid FROM batches WHERE tenant_id = :tenant",
            tenant=DEFAULT_TENANT,
        )
    )


def _check(nodes: list[dict[str, Any]], *indexes: str) -> None:
    """Check that only these indexes of letters are used, and nothing big is scanned or sorted."""
    scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} & BIG
    assert scanned <= {"batches"}  # forty rows
    used = {node["Index Name"] for node in nodes if "Index Name" in node}
    of_letters = {name for name in used if name.startswith("dead_letters_")}
    assert of_letters
    assert of_letters <= set(indexes)
    # The rows of a page may be sorted, but not the rows that it is selected from.
    below_limit = [node for node in nodes if node["Node Type"] == "Limit"]
    for limit in below_limit:
        assert not any(child["Node Type"] == "Sort" for child in limit.get("Plans", []))


FILTERS = [
    pytest.param({}, ("dead_letters_newest",), id="none"),
    pytest.param({"state": LetterState.OPEN}, ("dead_letters_by_state",), id="state"),
    pytest.param({"error_code": "timeout"}, ("dead_letters_by_code",), id="code"),
    pytest.param({"batch": True}, ("dead_letters_of_batch",), id="batch"),
    pytest.param(
        {"batch": True, "state": LetterState.OPEN},
        ("dead_letters_of_batch", "dead_letters_by_state"),
        id="batch and state",
    ),
    pytest.param(
        {"error_code": "timeout", "state": LetterState.OPEN},
        ("dead_letters_by_code", "dead_letters_by_state"),
        id="code and state",
    ),
]


def _filter_parameters(world: World, fields: dict[str, Any]) -> dict[str, object]:
    if "batch" in fields:
        fields = {**fields, "batch": _any_batch(world)}
    return matches(DEFAULT_TENANT, LetterFilter(**fields))


@pytest.mark.parametrize("role", ["worker", "api"])
@pytest.mark.parametrize("after", [False, True], ids=["first page", "later page"])
@pytest.mark.parametrize(("fields", "indexes"), FILTERS)
def test_page_query_uses_index(
    loaded: World, fields: dict[str, Any], indexes: tuple[str, ...], role: str, *, after: bool
) -> None:
    values = _filter_parameters(loaded, fields) | {
        "at": datetime.now(UTC) if after else None,
        "after_batch": _any_batch(loaded),
        "after_line": 7,
        "limit": 101,
    }
    engine = loaded.database.engine(role)
    _check(plan_nodes(engine, dead_letters_store.PAGE, **values), *indexes)


@pytest.mark.parametrize("after", [False, True], ids=["first page", "later page"])
@pytest.mark.parametrize(("fields", "indexes"), FILTERS)
def test_page_of_all_tenants_uses_index_of_each(
    loaded: World, fields: dict[str, Any], indexes: tuple[str, ...], *, after: bool
) -> None:
    values = _filter_parameters(loaded, fields) | {
        "at": datetime.now(UTC) if after else None,
        "after_batch": _any_batch(loaded),
        "after_line": 7,
        "limit": 26,
    }
    values.pop("tenant")
    nodes = executed_nodes(
        loaded.database.engine("operator"), dead_letters_store.PAGE_OF_ALL, **values
    )
    _check_reads(nodes, *indexes)
    assert _read(nodes) <= 2 * 26


@pytest.mark.parametrize(("fields", "indexes"), FILTERS)
def test_counting_by_error_uses_index_and_stops(
    loaded: World, fields: dict[str, Any], indexes: tuple[str, ...]
) -> None:
    values = _filter_parameters(loaded, fields) | {"most": 500}
    nodes = executed_nodes(loaded.database.engine("operator"), dead_letters_store.GROUPS, **values)
    _check_reads(nodes, *indexes)
    assert _read(nodes) <= 500
    values.pop("tenant")
    nodes = executed_nodes(
        loaded.database.engine("operator"), dead_letters_store.GROUPS_OF_ALL, **values
    )
    _check_reads(nodes, *indexes)
    assert _read(nodes) <= 2 * 500


def _read(nodes: list[dict[str, Any]]) -> float:
    """Return the number of letters that a plan read."""
    scans = [node for node in nodes if node.get("Relation Name") == "dead_letters"]
    return sum(float(node["Actual Rows"] * node["Actual Loops"]) for node in scans)


def _check_reads(nodes: list[dict[str, Any]], *indexes: str) -> None:
    """Check that letters and what belongs to them are read by these indexes only."""
    scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
    assert scanned & BIG <= {"batches"}, "one page holds the batches of this test"
    used = {node["Index Name"] for node in nodes if "Index Name" in node}
    of_letters = {name for name in used if name.startswith("dead_letters_")}
    assert of_letters
    assert of_letters <= set(indexes)


@pytest.mark.parametrize(("fields", "indexes"), FILTERS)
def test_download_query_uses_index(
    loaded: World, fields: dict[str, Any], indexes: tuple[str, ...]
) -> None:
    values = _filter_parameters(loaded, fields) | {
        "after_batch": _any_batch(loaded), "after_line": 7, "limit": 1000,
    }  # fmt: skip
    nodes = plan_nodes(loaded.worker, dead_letters_store.PLACES, **values)
    scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} & BIG
    assert scanned <= {"batches"}  # forty rows
    used = {node.get("Index Name") for node in nodes}
    assert used & {"dead_letters_in_order", "dead_letters_pkey", *indexes}


@pytest.mark.parametrize(("fields", "indexes"), FILTERS)
def test_oldest_open_letters_query_uses_index(
    loaded: World, fields: dict[str, Any], indexes: tuple[str, ...]
) -> None:
    values = _filter_parameters(loaded, {**fields, "state": LetterState.OPEN})
    nodes = plan_nodes(loaded.worker, requeue_store.MATCHING, **values, most=50_000)
    _check(nodes, *indexes, "dead_letters_by_state", "dead_letters_of_batch")


@pytest.mark.parametrize("count", [1, 1000])
def test_named_letters_queries_use_index(loaded: World, count: int) -> None:
    keys = {"batch": _any_batch(loaded), "lines": list(range(1, count + 1))}
    ended = {"state": "discarded", "target": None, "actor": "a", "key": None, "digest": None}
    for sql, more in ((requeue_store.NAMED, {}), (requeue_store.END, ended)):
        nodes = plan_nodes(loaded.worker, sql, tenant=DEFAULT_TENANT, **keys, **more)
        by_key = ("dead_letters_pkey", "dead_letters_in_order", "dead_letters_of_batch")
        _check(nodes, *by_key, "dead_letters_by_state")


@pytest.fixture(params=["never analyzed", "analyzed while empty"])
def stale(request: pytest.FixtureRequest, database: Database) -> Iterator[Database]:
    """Database with a batch of dead letters that its statistics do not cover."""
    server = database.server
    admin = admin_engine(server.url(SUPERUSER, server.cluster.password, database.name))
    batch = "00000000-0000-7000-8000-000000000001"
    with admin.connect() as connection:
        for table in stored(connection, BIG):
            connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
            if request.param != "never analyzed":
                connection.execute(text(f"VACUUM ANALYZE {table}"))
        for statement in (
            """INSERT INTO requests SELECT cast(:batch AS uuid), line, :tenant, line * 100, 90,
                 line::text FROM generate_series(1, :lines) AS line""",
            """INSERT INTO dead_letters (batch_id, line, tenant_id, attempts)
               SELECT batch_id, line, tenant_id, 5 FROM requests""",
        ):
            values = {"batch": batch, "tenant": DEFAULT_TENANT, "lines": STALE_LINES}
            connection.execute(text(statement), values)
    yield database
    admin.dispose()


@pytest.mark.parametrize("role", ["api", "operator"])
def test_ending_letters_reads_few_pages_per_letter(stale: Database, role: str) -> None:
    batch = "00000000-0000-7000-8000-000000000001"
    values = {"batch": batch, "lines": list(range(1, STALE_LINES + 1)), "tenant": DEFAULT_TENANT}
    ended = {"state": "discarded", "target": None, "actor": "a", "key": None, "digest": None}
    for sql, more in ((requeue_store.NAMED, {}), (requeue_store.END, ended)):
        with acting_for(stale.engine(role), DEFAULT_TENANT) as connection:
            explain = text(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}")
            output = connection.execute(explain, values | more).scalar_one()
            connection.rollback()
        plan = (output if isinstance(output, list) else json.loads(output))[0]
        # The page count also reveals rows that are compared repeatedly.
        assert plan["Plan"]["Shared Hit Blocks"] < STALE_LINES * 60
        assert plan["Execution Time"] < STALE_LINES * 0.5


def test_idempotency_key_query_uses_index(loaded: World) -> None:
    nodes = plan_nodes(loaded.worker, requeue_store.UNDER_KEY, tenant=DEFAULT_TENANT, key="k")
    _check(nodes, "dead_letters_by_requeue_key")


def test_answers_query_uses_primary_keys(loaded: World) -> None:
    values = {"tenant": DEFAULT_TENANT, "batch": _any_batch(loaded), "lines": [1, 2, 3]}
    nodes = plan_nodes(loaded.worker, dead_letters_store.ANSWERS, **values)
    used = {node["Index Name"] for node in nodes if "Index Name" in node}
    assert used == {"requests_pkey", "results_pkey"}


@pytest.mark.parametrize("role", ["operator", "api"])
@pytest.mark.parametrize("after", [0, 500])
def test_failed_requests_of_batch_are_looked_up(loaded: World, role: str, after: int) -> None:
    values = {"batch": _any_batch(loaded), "after": after, "failed": True, "limit": 1000}
    values["dropped"] = ["expired", "cancelled"]
    engine = loaded.database.engine(role)
    nodes = plan_nodes(engine, rerun_store.PAGE, **values)
    scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
    assert scanned & BIG <= {"batches"}  # forty rows
    used = {node.get("Index Name") for node in nodes}
    assert used >= {"results_pkey", "requests_pkey"}
    assert used & {"dead_letters_pkey", "dead_letters_in_order"}

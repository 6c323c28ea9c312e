"""Plans of retention: each statement finds its batches by an index, whatever else there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.batches.request_store import WITH_DATA
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.retention import partitions, store
from tests.plans import analyzed, plan_nodes
from tests.retention.days import KEPT
from tests.worlds import World, emptied

if TYPE_CHECKING:
    from tests.conftest import Database

BIG = {
    "batches", "batch_terms", "segments", "tallies", "requests", "results", "custom_ids",
    "dead_letters", "request_events",
}  # fmt: skip
BATCHES, LINES = 20_000, 4000


@pytest.fixture(scope="module")
def loaded(shared_database: Database) -> World:
    """20,000 batches that ended in the last 400 days: a few wait for each step, the others for none."""
    world = World(emptied(shared_database))
    values = {"tenant": DEFAULT_TENANT, "batches": BATCHES, "lines": LINES}
    for statement in (
        """INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
             completion_window, status, created_at, deadline, completed_at, data_ended_at,
             data_deleted, tallies_folded, output_expires_after)
           SELECT uuidv7(n * interval '-25 min'), :tenant, 'u', gen_random_uuid(), 'k',
             '/v1/embeddings', '24h', 'completed', now(), now(), now() - n * interval '25 min',
             CASE WHEN n > 1700 THEN now() END, n > 1710, n > 10,
             CASE WHEN mod(n, 10) = 0 THEN 864000 END
           FROM generate_series(1, :batches) n""",
        """INSERT INTO tallies (batch_id, tenant_id, lease_id, pool)
           SELECT id, tenant_id, gen_random_uuid(), 'spot' FROM batches""",
        """INSERT INTO segments
             (batch_id, number, tenant_id, first_line, lines, index_start, index_end)
           SELECT id, 1, tenant_id, 1, 1, 0, 1 FROM batches""",
        """INSERT INTO requests (batch_id, line, tenant_id, start, length, custom_id)
           SELECT b.id, n, :tenant, n, 1, b.id || '-' || n
           FROM (SELECT id FROM batches ORDER BY id DESC LIMIT 5) b, generate_series(1, :lines) n""",
        """INSERT INTO custom_ids SELECT batch_id, line, tenant_id, custom_id FROM requests""",
        """INSERT INTO results SELECT batch_id, tenant_id, batch_id, now(), now(), line, 1, 1, 200, 1,
             0, true, false, false, 'spot', 'r', '{}' FROM requests""",
        """INSERT INTO dead_letters (batch_id, line, tenant_id, attempts)
           SELECT batch_id, line, tenant_id, 1 FROM requests""",
        """INSERT INTO request_events (tenant_id, batch_id, line, kind, pool)
           SELECT tenant_id, batch_id, line, 'retried', 'spot' FROM requests""",
    ):
        world.run(statement, **values)
    with shared_database.engine("operator").begin() as connection:
        connection.execute(
            text("INSERT INTO batch_terms SELECT id, tenant_id, 'name', 'n' FROM batches")
        )
    with shared_database.engine("owner").begin() as connection:
        connection.execute(text(f"ANALYZE {analyzed(connection, BIG)}"))
    return world


def _batch(world: World) -> dict[str, Any]:
    batch = world.value("SELECT id FROM batches ORDER BY id DESC LIMIT 1")
    return {"batch": batch, "tenant": DEFAULT_TENANT, "after": 0, "limit": 500}


STATEMENTS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "fold": (store.FOLD, {"limit": 200}, {"batches_unfolded", "tallies_pkey", "batches_pkey"}),
    "due": (
        store.DUE,
        {"limit": 200, "retention": KEPT},
        {"batches_data_of_tenant", "batches_data_with_own_end"},
    ),
    "end": (store.END, {"batches": [DEFAULT_TENANT]}, {"batches_pkey"}),
    "gone": (
        store.GONE,
        {"lows": [DEFAULT_TENANT], "highs": [DEFAULT_TENANT], "limit": 200},
        {"batches_data_overdue"},
    ),
    "overdue": (store.OVERDUE, {"patience": 1, "limit": 200}, {"batches_data_overdue"}),
    "records": (
        store.DELETE_RECORDS,
        {"retention": 400 * 86_400, "limit": 200},
        {"batches_ended", "tallies_pkey", "batch_terms_pkey", "segments_pkey", "batches_pkey"},
    ),
    "ended partitions": (partitions.ENDED, {}, {"batches_with_data", "batches_data_overdue"}),
    "filter of readers": (
        f"SELECT count(*) FROM dead_letters WHERE tenant_id = :tenant AND {WITH_DATA}",  # noqa: S608
        {"tenant": DEFAULT_TENANT},
        {"batches_data_overdue"},
    ),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_batches_are_found_by_an_index(loaded: World, name: str) -> None:
    sql, parameters, indexes = STATEMENTS[name]
    nodes = plan_nodes(loaded.worker, sql, **parameters)
    scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
    assert scanned & {"batches", "tallies"} == set()
    assert indexes <= {node["Index Name"] for node in nodes if "Index Name" in node}


def test_deletion_of_requests_uses_keys_alone(loaded: World) -> None:
    parameters = _batch(loaded)
    nodes = plan_nodes(loaded.worker, store.DELETE_REQUESTS, **parameters)
    assert {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} == set()
    names = {node["Index Name"] for node in nodes if "Index Name" in node}
    assert {"requests_pkey", "custom_ids_sorted", "dead_letters_pkey"} <= names
    del parameters["tenant"]
    nodes = plan_nodes(loaded.worker, store.DELETE_EVENTS, **parameters)
    assert {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} == set()

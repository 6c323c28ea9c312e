"""Query plans of the hot statements: an index each, no scan of a big table, no sort for a claim."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from sqlalchemy import text

from lowtide.batches import answer_store, erasure
from lowtide.batches import store as batches_store
from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.core.runs import RUN_LINES
from lowtide.files import store as files_store
from lowtide.objects import data_keys
from lowtide.pipeline import final_store, split_store
from lowtide.planning.escalation import Move
from lowtide.queue import claiming, draining, settling
from lowtide.queue import store as queue_store
from lowtide.queue.claims import Returned
from lowtide.scheduler import plan, sweep
from tests.plans import analyzed, plan_nodes
from tests.worlds import World, emptied

if TYPE_CHECKING:
    from tests.conftest import Database

LINES = 5000
BATCHES = 8
BIG = {
    "queued_runs", "claimed_runs", "tallies", "requests", "results", "batches", "files", "segments", "custom_ids",
    "dead_letters", "request_events",
}  # fmt: skip
KEDA = Path(__file__).parents[2] / "keda"


@pytest.fixture(scope="module", params=["runs", "single requests"])
def loaded(request: pytest.FixtureRequest, shared_database: Database) -> World:
    """Eight half-finished batches of 5,000 requests among 2,000 old batches and files."""
    run, claim = {
        "runs": (f"(line - 1) / {RUN_LINES}", f"(line - 1) / {RUN_LINES // 4}"),
        "single requests": ("line", "line"),
    }[request.param]
    world = World(emptied(shared_database))
    file = world.file()
    new = [str(new_id()) for _ in range(BATCHES)]
    values = {"tenant": DEFAULT_TENANT, "ids": new, "lines": LINES, "file": file.id}
    for statement in (
        """INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
             completion_window, status, created_at, deadline, total)
           SELECT id, :tenant, 'u', :file, 'k', '/v1/embeddings', '24h', 'in_progress', now(),
             now() + n * interval '1 h', :lines
           FROM unnest(cast(:ids AS uuid[])) WITH ORDINALITY AS b (id, n)""",
        """INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
             completion_window, status, created_at, deadline)
           SELECT gen_random_uuid(), :tenant, 'u', gen_random_uuid(), 'k', '/v1/embeddings', '24h',
             'completed', now(), now() FROM generate_series(1, 2000)""",
        """INSERT INTO files (id, tenant_id, purpose, filename, bytes, lines, sha256, object_key,
             status, created_at)
           SELECT gen_random_uuid(), :tenant, 'batch', 'f', 1, 1, '', 'k', 'processed', now()
           FROM generate_series(1, 2000)""",
        """INSERT INTO segments (batch_id, number, tenant_id, first_line, lines, index_start,
             index_end, split_at)
           SELECT id, number, tenant_id, 1, 100, 0, 0, CASE WHEN status = 'completed' OR number < 3
             THEN now() END
           FROM batches, generate_series(1, 20) AS number""",
        """INSERT INTO requests SELECT id, line, :tenant, line * 100, 90, line::text
           FROM unnest(cast(:ids AS uuid[])) AS id, generate_series(1, :lines) AS line""",
        f"""INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, size,
             lines, pool)
           SELECT r.batch_id, r.tenant_id, b.deadline, now(), now(), min(line), count(*),
             range_agg(int4range(line, line + 1)), pool
           FROM (SELECT *, CASE WHEN mod(line, 10) = 0 THEN 'dedicated' ELSE 'spot' END AS pool
             FROM requests) r
           JOIN batches b ON b.id = r.batch_id WHERE mod(line, 2) = 0
           GROUP BY r.batch_id, r.tenant_id, b.deadline, pool, {run}""",  # noqa: S608
        """INSERT INTO results SELECT batch_id, tenant_id, batch_id, now(), now(), line, 1, 1, 200, 1,
             0, true, false, false, 'spot', 'r', '{}' FROM requests WHERE mod(line, 2) = 1""",
        f"""INSERT INTO claimed_runs (batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, line,
             size, lines, attempts, interruptions, lost_leases, escalated, pool)
           SELECT batch_id, tenant_id, batch_id, now(), now(), now(), min(line), count(*),
             range_agg(int4range(line, line + 1)), 0, 0, 0, false, 'spot'
           FROM requests WHERE mod(line, 20) = 1 GROUP BY batch_id, tenant_id, {claim}""",  # noqa: S608
        """INSERT INTO custom_ids SELECT batch_id, line, tenant_id, custom_id FROM requests""",
        """INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, error_message)
           SELECT batch_id, line, tenant_id, 1, 'm' FROM results WHERE mod(line, 4) = 1""",
        """INSERT INTO request_events (batch_id, line, tenant_id, kind, pool, detail)
           SELECT batch_id, line, tenant_id, 'retried', 'spot', 'm' FROM results""",
        """INSERT INTO tallies (batch_id, tenant_id, lease_id, pool)
           SELECT id, tenant_id, gen_random_uuid(), pool
           FROM batches, generate_series(1, 4), unnest('{spot,dedicated}'::text[]) AS pool""",
    ):
        world.run(statement, **values)
    with shared_database.engine("owner").begin() as connection:
        connection.execute(text(f"ANALYZE {analyzed(connection, BIG)}"))
    return world


def _under(nodes: list[dict[str, Any]], kind: str) -> set[str]:
    """Return the kinds of all nodes below nodes of one kind."""
    pending = [child for node in nodes if node["Node Type"] == kind for child in node["Plans"]]
    kinds = set()
    while pending:
        node = pending.pop()
        kinds.add(node["Node Type"])
        pending += node.get("Plans", [])
    return kinds


def _kinds(nodes: list[dict[str, Any]]) -> set[str]:
    return {node["Node Type"] for node in nodes}


def _scanned(nodes: list[dict[str, Any]]) -> set[str]:
    return {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} & BIG


def _indexes(nodes: list[dict[str, Any]]) -> set[str]:
    return {node["Index Name"] for node in nodes if "Index Name" in node}


def _any_batch(world: World) -> BatchId:
    return BatchId(world.value("SELECT min(batch_id::text)::uuid FROM queue"))


@pytest.mark.parametrize("lines", [1, 50, 200])
@pytest.mark.parametrize("tenants", [1, 3])
def test_claim_walks_its_index(loaded: World, lines: int, tenants: int) -> None:
    lanes = [
        {"batch": str(row.batch_id), "at": "-infinity", "line": 0}
        for row in loaded.rows("SELECT DISTINCT batch_id FROM queue LIMIT 6")
    ]
    shares = json.dumps([{"lines": lines, "lanes": lanes[n::tenants]} for n in range(tenants)])
    nodes = plan_nodes(
        loaded.worker,
        claiming.TAKE,
        lease=new_id(),
        fleet=DEFAULT_FLEET,
        pool="spot",
        shares=shares,
    )
    assert _scanned(nodes) == set()
    assert {"queued_runs_claim", "requests_pkey", "batches_pkey"} <= _indexes(nodes)
    of_queue = [node for node in nodes if node.get("Relation Name") == "queued_runs"]
    assert {node["Index Name"] for node in of_queue if "Index Name" in node} == {
        "queued_runs_claim"
    }
    (walk,) = [node for node in of_queue if "Index Name" in node]
    # The scan starts at the mark and ends at the requests that are not available yet.
    assert all(part in walk["Index Cond"] for part in ("pool", "batch_id", "ROW(", "<="))
    # Queued requests are not sorted, only the few claimed ones.
    assert "Sort" not in _under(nodes, "LockRows")


@pytest.mark.parametrize(
    ("pool", "orders"),
    [
        (Pool.SPOT, {"batches_in_order"}),
        (Pool.DEDICATED, {"batches_of_tenant", "batches_active"}),
    ],
)
def test_lane_search_reads_lanes_in_order_and_probes_queue_index(
    loaded: World, pool: Pool, orders: set[str]
) -> None:
    nodes = plan_nodes(
        loaded.worker, claiming.LANES[pool], fleet=DEFAULT_FLEET, pool=pool, most=100, without=[]
    )
    assert _scanned(nodes) == set()
    assert "queued_runs_claim" in _indexes(nodes)
    assert orders & _indexes(nodes)
    assert "Sort" not in _kinds(nodes)


def test_stalled_segments_are_found_by_batch(loaded: World) -> None:
    nodes = plan_nodes(loaded.worker, sweep.STALLED_SEGMENTS, age=60)
    assert _scanned(nodes) == set()
    assert {"segments_pkey", "segments_to_split"} <= _indexes(nodes)
    assert "Sort" not in _kinds(nodes)


def test_next_segment_is_found_by_key(loaded: World) -> None:
    nodes = plan_nodes(loaded.worker, split_store.SEGMENT, batch=_any_batch(loaded), number=7)
    assert _scanned(nodes) == set()


@pytest.mark.parametrize("statement", [settling.MINE, settling.END_CLAIMS, settling.FINISH])
@pytest.mark.parametrize("blocks", [1, 30])
def test_settling_finds_claims_by_key(loaded: World, statement: str, blocks: int) -> None:
    lines = range(1, blocks * RUN_LINES, 20)
    returned = [Returned(_any_batch(loaded), line, "") for line in lines]
    runs = settling._given(settling._by_line(returned))
    values = {
        "lease": new_id(),
        "runs": runs,
        "mine": json.dumps(
            [{**block, "claimed_at": "2026-01-01T00:00:00Z"} for block in json.loads(runs)]
        ),
        "sums": "[]",
        "letters": "[]",
        "shard": 1,
    }
    given = {name: value for name, value in values.items() if f":{name}" in statement}
    nodes = plan_nodes(loaded.worker, statement, **given)
    assert _scanned(nodes) == set()
    assert "claimed_runs_pkey" in _indexes(nodes)
    # A walk is bounded by the block of the lines on both sides.
    walks = [node for node in nodes if node.get("Index Name") == "claimed_runs_pkey"]
    assert all(
        all(part in walk["Index Cond"] for part in ("batch_id", "line >=", "line <"))
        for walk in walks
    )
    assert "Sort" not in _under(nodes, "LockRows")


def test_revocation_finds_claims_by_batch(loaded: World) -> None:
    moves = plan.given([Move(_any_batch(loaded), 10)])
    nodes = plan_nodes(loaded.worker, plan.REVOKE, fleet=DEFAULT_FLEET, moves=moves)
    assert _scanned(nodes) == set()
    assert "claimed_runs_pkey" in _indexes(nodes)


@pytest.mark.parametrize("lines", [10, 2000])
def test_fallback_finds_requests_by_batch(loaded: World, lines: int) -> None:
    moves = json.dumps([{"batch": str(_any_batch(loaded)), "lines": lines}])
    nodes = plan_nodes(
        loaded.worker, plan.FALL_BACK, source=DEFAULT_FLEET, target="other", moves=moves
    )
    assert _scanned(nodes) == set()
    assert "Sort" not in _under(nodes, "LockRows")
    assert "queued_runs_claim" in _indexes(nodes)


def test_state_of_a_request_is_found_in_the_runs_of_its_block(loaded: World) -> None:
    nodes = plan_nodes(
        loaded.worker,
        "SELECT * FROM request_states WHERE batch_id = :batch AND line = 1000",
        batch=_any_batch(loaded),
    )
    assert _scanned(nodes) == set()
    for index in ("queued_runs_pkey", "claimed_runs_pkey"):
        (walk,) = [node for node in nodes if node.get("Index Name") == index]
        assert all(part in walk["Index Cond"] for part in ("batch_id", "line >=", "line <="))


def test_requeueing_scans_no_big_table(loaded: World) -> None:
    nodes = plan_nodes(loaded.worker, str(queue_store._REQUEUE), runs="[]", open=[])
    assert _scanned(nodes) == set()


@pytest.mark.parametrize("lines", [10, 2000])
def test_escalation_finds_requests_by_batch(loaded: World, lines: int) -> None:
    moves = plan.given([Move(_any_batch(loaded), lines)])
    nodes = plan_nodes(loaded.worker, plan.ESCALATE, fleet=DEFAULT_FLEET, moves=moves)
    assert _scanned(nodes) == set()
    assert "Sort" not in _under(nodes, "LockRows")
    assert "queued_runs_claim" in _indexes(nodes)


@pytest.mark.parametrize("lines", [10, 2000])
def test_deescalation_finds_requests_by_batch(loaded: World, lines: int) -> None:
    moves = plan.given([Move(_any_batch(loaded), lines)])
    nodes = plan_nodes(loaded.worker, plan.GIVE_BACK, fleet=DEFAULT_FLEET, moves=moves, reason="")
    assert _scanned(nodes) == set()
    assert "Sort" not in _under(nodes, "LockRows")
    assert "queued_runs_claim" in _indexes(nodes)


def test_tick_counts_requests_by_batch(loaded: World) -> None:
    nodes = plan_nodes(loaded.worker, plan.BATCHES)
    assert _scanned(nodes) <= {"batches", "files"}
    assert {"queued_runs_claim", "claimed_runs_pkey", "tallies_pkey"} <= _indexes(nodes)


@pytest.mark.parametrize("count", [1, 3])
def test_drain_check_reads_single_queue_rows(loaded: World, count: int) -> None:
    ids = [row.id for row in loaded.rows("SELECT id FROM batches LIMIT :n", n=count)]
    ids[0] = _any_batch(loaded)
    places = json.dumps(
        [
            {"id": str(id_), "fleet": DEFAULT_FLEET, "pool": "spot", "at": None, "line": 0}
            for id_ in ids
        ]
    )
    nodes = plan_nodes(loaded.worker, draining.NOTHING_QUEUED, batches=places)
    assert _scanned(nodes) == set()
    probes = [node for node in nodes if node.get("Relation Name") == "queued_runs"]
    assert len(probes) == 2
    assert all("batch_id" in probe["Index Cond"] for probe in probes)
    nodes = plan_nodes(loaded.worker, str(draining._DRAIN), batches=ids)
    assert _scanned(nodes) == set()


def test_due_exports_are_read_from_their_index(loaded: World) -> None:
    nodes = plan_nodes(loaded.worker, sweep.EXPORTS_DUE, age=30.0)
    assert _scanned(nodes) == set()
    assert "batches_exporting" in _indexes(nodes)


@pytest.mark.parametrize("after", [0, LINES // 2, LINES - 10])
def test_finalizing_reads_both_tables_by_key(loaded: World, after: int) -> None:
    nodes = plan_nodes(
        loaded.worker,
        final_store.LINES,
        batch=_any_batch(loaded),
        after=after,
        end=5001,
        limit=2000,
    )
    assert _scanned(nodes) == set()
    assert {"requests_pkey", "results_pkey"} <= _indexes(nodes)


@pytest.mark.parametrize(
    ("part", "statement"),
    [(part, number) for part, sets in erasure.SETS.items() for number in range(len(sets))],
)
def test_erasing_reads_a_set_by_key(loaded: World, part: str, statement: int) -> None:
    sql = erasure.SETS[part][statement]
    nodes = plan_nodes(loaded.worker, sql, batch=_any_batch(loaded), after=100, upto=600)
    assert _scanned(nodes) == set()
    assert _indexes(nodes)
    bounds = [node["Index Cond"] for node in nodes if "line >" in node.get("Index Cond", "")]
    assert bounds, "a set is a range of an index"


def test_next_erasure_reads_no_big_table(loaded: World) -> None:
    nodes = plan_nodes(loaded.worker, erasure.NEXT)
    assert _scanned(nodes) == set()


def test_next_of_many_erasures_is_read_from_their_index(
    loaded: World, shared_database: Database
) -> None:
    loaded.run(
        "INSERT INTO erasures (batch_id, tenant_id, part) SELECT id, tenant_id, part "
        "FROM batches, unnest(ARRAY['output', 'error']) part"
    )
    try:
        with shared_database.engine("owner").begin() as connection:
            connection.execute(text("ANALYZE erasures"))
        nodes = plan_nodes(loaded.worker, erasure.NEXT)
    finally:
        loaded.run("DELETE FROM erasures")
    assert "erasures_next" in _indexes(nodes)
    assert "Sort" not in {node["Node Type"] for node in nodes}


def test_expired_files_find_their_batches_by_index(loaded: World) -> None:
    nodes = plan_nodes(loaded.worker, sweep.EXPIRE_FILES, limit=200)
    assert _scanned(nodes) == set()
    assert {"batches_by_output", "batches_by_error", "batches_by_input"} <= _indexes(nodes)


def test_orphans_find_their_owners_by_key(loaded: World) -> None:
    nodes = plan_nodes(loaded.worker, sweep.ORPHANS, limit=200)
    assert _scanned(nodes) == set()
    assert {"files_pkey", "batches_pkey"} <= _indexes(nodes)


def test_files_of_answers_are_read_by_key(loaded: World) -> None:
    nodes = plan_nodes(loaded.worker, answer_store.FILES, batch=_any_batch(loaded))
    assert _scanned(nodes) == set()
    assert {"files_pkey", "batches_pkey"} <= _indexes(nodes)


@pytest.mark.parametrize("after", [None, "01000000-0000-7000-8000-000000000000"])
@pytest.mark.parametrize("resource", ["batches", "files, newest first", "files, oldest first"])
def test_page_is_read_from_index(loaded: World, resource: str, after: str | None) -> None:
    page: dict[str, Any] = {"tenant": DEFAULT_TENANT, "after": after, "limit": 21}
    values = page | {"status": "failed", "user": "ada"}
    sql = str(batches_store._PAGE)
    if resource != "batches":
        values = page | {"purpose": None}
        sql = str(files_store._PAGE["newest" in resource])
    nodes = plan_nodes(loaded.worker, sql, **values)
    assert _scanned(nodes) == set()
    assert "Sort" not in _kinds(nodes)
    table = "batches" if resource == "batches" else "files"
    assert _indexes(nodes) & {f"{table}_newest", f"{table}_pkey"}


@pytest.mark.parametrize("count", [1, 200])
def test_unused_data_keys_are_found_by_id(loaded: World, count: int) -> None:
    with loaded.database.engine("operator").begin() as connection:
        connection.execute(
            text(
                "INSERT INTO data_keys (id, tenant_id, wrapped) SELECT gen_random_uuid(), :tenant, 'x' "
                "FROM generate_series(1, 2000)"
            ),
            {"tenant": DEFAULT_TENANT},
        )
    with loaded.database.engine("owner").begin() as connection:
        connection.execute(text("ANALYZE data_keys"))
    ids = loaded.rows("SELECT id FROM data_keys LIMIT :count", count=count)
    nodes = plan_nodes(loaded.worker, data_keys.DESTROY_UNUSED, ids=[row.id for row in ids])
    scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
    # There are no uploads: once autovacuum knows that, reading all of them is cheapest.
    assert scanned <= {"uploads"}


def _waiting(world: World, pool: str) -> list[dict[str, Any]]:
    """Return the plan of the body of waiting_requests(), which the query's own does not show."""
    owner = world.database.engine("owner")
    with owner.connect() as connection:
        body: str = connection.execute(
            text("SELECT prosrc FROM pg_proc WHERE proname = 'waiting_requests'")
        ).scalar_one()
    values = {"of_fleet": f"'{DEFAULT_FLEET}'", "of_pool": f"'{pool}'", "most": "20"}
    for name, value in values.items():
        body = re.sub(rf"\b{name}\b", value, body)
    return plan_nodes(owner, body)


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
@pytest.mark.parametrize("file", ["infer-spot.yaml", "infer-dedicated.yaml"])
def test_autoscaler_query_is_bounded(loaded: World, file: str, *, paused: bool) -> None:
    trigger = yaml.safe_load((KEDA / file).read_text())["spec"]["triggers"][0]
    sql = trigger["metadata"]["query"]
    engine = loaded.database.engine("autoscaler")
    with loaded.database.engine("operator").begin() as connection:
        connection.execute(text("DELETE FROM paused_pools"))
        if paused:
            insert = (
                "INSERT INTO paused_pools (pool, paused_by) VALUES ('spot', ''), ('dedicated', '')"
            )
            connection.execute(text(insert))
    nodes = plan_nodes(engine, sql.replace(":", r"\:"))
    counting = _waiting(loaded, file[6:-5])
    assert _scanned([*nodes, *counting]) <= {"claimed_runs"}
    for walks in (nodes, counting):
        assert [
            (walk["Node Type"], walk["Index Name"])
            for walk in walks
            if walk.get("Relation Name") == "queued_runs"
        ] == [("Index Only Scan", "queued_runs_claim")]
    # The query reads no more rows than its limits, however many requests are queued.
    limits = [node for node in [*nodes, *counting] if node["Node Type"] == "Limit"]
    assert [node["Plan Rows"] <= 20 for node in limits] == [True] * 4
    whole = plan_nodes(engine, "SELECT count(*) FROM queue")
    # Most of the cost is for small tables, which the planner estimates at ten pages.
    assert nodes[0]["Total Cost"] < whole[0]["Total Cost"] / 5
    with engine.connect() as connection:
        value = connection.execute(text(sql)).scalar_one()
    queued = 0 if paused else 20
    claimed = 20 if "spot" in file else 0
    assert value == queued + claimed
    with loaded.database.engine("operator").begin() as connection:
        connection.execute(text("DELETE FROM paused_pools"))

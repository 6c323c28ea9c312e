"""Statements on the hot path read little even while planner statistics are stale.

Autovacuum runs once a minute and a batch may last seconds, so the planner nearly always works from
statistics that predate the batch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.core.runs import RUN_LINES
from lowtide.local.database import engine
from lowtide.local.files import SUPERUSER
from lowtide.pipeline.final_store import LINES
from lowtide.queue.claiming import LANES, TAKE
from lowtide.queue.settling import END_CLAIMS, FINISH, MINE
from tests.plans import stored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

BATCH_REQUESTS = 4000
OLD, NEW, LEASE = (f"00000000-0000-7000-8000-{number:012d}" for number in (1, 2, 3))
TENANT = "00000000-0000-0000-0000-000000000000"

FILL = """
INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, completion_window,
  created_at, deadline, status)
VALUES ('{batch}', '{tenant}', 'u', '{batch}', 'k', '/v1/embeddings', '24h', now(),
  now() + interval '1 day', 'in_progress');
INSERT INTO requests (batch_id, line, tenant_id, start, length, custom_id)
SELECT '{batch}', n, '{tenant}', n * 100, 100, 'line ' || n FROM generate_series(1, {lines}) n;
INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
  output_tokens, status_code, attempts, interruptions, succeeded, escalated, dead_lettered, pool,
  request_id, body)
SELECT '{batch}', '{tenant}', '{lease}', now(), now(), n, 0, 0, 200, 1, 0, true, false, false,
  'spot', '', '{{}}' FROM generate_series(1, {lines}) n;
INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, size, lines, pool)
SELECT '{batch}', '{tenant}', now() + interval '1 day', now(), now(), min(n), count(*),
  range_agg(int4range(n, n + 1)), 'spot'
FROM generate_series(1, {lines}) n GROUP BY (n - 1) / {run_lines}
"""
OTHER_CLAIMS = f"""
INSERT INTO claimed_runs (batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, line, lines,
  attempts, interruptions, lost_leases, escalated, pool)
SELECT '{OLD}', '{TENANT}', '{LEASE}', now(), now(), now(), n, int4multirange(int4range(n, n + 1)),
  1, 0, 0, false, 'spot' FROM generate_series(1, {BATCH_REQUESTS}) n
"""  # noqa: S608 - constants of ours
REGISTER = text("""
INSERT INTO workers (id, pool, name, expires_at)
VALUES (:lease, 'spot', 'w', now() + interval '1 hour')
""")


@pytest.fixture(
    params=["never analyzed", "analyzed before the batch", "analyzed with an empty queue"]
)
def stale(request: pytest.FixtureRequest, database: Database) -> Iterator[Database]:
    """Database with a batch that its statistics do not cover."""
    server = database.server
    admin = engine(server.url(SUPERUSER, server.cluster.password, database.name))
    with admin.connect() as connection:

        def run(statements: str) -> None:
            for statement in statements.split(";"):
                connection.execute(text(statement))

        tables = ("batches", "requests", "results", "queued_runs", "claimed_runs", "workers")
        for table in stored(connection, tables):
            run(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        values = {
            "tenant": TENANT, "lease": LEASE, "lines": BATCH_REQUESTS, "run_lines": RUN_LINES
        }  # fmt: skip
        if request.param != "never analyzed":
            run(FILL.format(batch=OLD, **values))
            if request.param == "analyzed with an empty queue":
                run("DELETE FROM queued_runs; VACUUM ANALYZE queued_runs")
            run("ANALYZE")
        run(FILL.format(batch=NEW, **values))
        connection.execute(REGISTER, {"lease": LEASE})
    yield database
    admin.dispose()


def rows_touched(database: Database, statement: str, **parameters: object) -> int:
    """Run a statement as a worker; return the number of rows that all steps of its plan read."""
    with database.engine("worker").connect() as connection:
        explain = text(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}")
        output = connection.execute(explain, parameters).scalar_one()
        connection.rollback()
    plans = json.loads(output) if isinstance(output, str) else output
    return sum(map(_rows, plans))


def _rows(node: dict[str, Any]) -> int:
    plan = node.get("Plan", node)
    dropped = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Join Filter", 0)
    own = (plan["Actual Rows"] + dropped) * plan["Actual Loops"]
    return int(own) + sum(map(_rows, plan.get("Plans", ())))


def claim_parameters(requests: int, line: int = 0) -> dict[str, object]:
    """Return the parameters of a claim of `requests` requests after `line`."""
    at = "-infinity" if not line else "2020-01-01"
    lanes = [{"batch": NEW, "at": at, "line": line}]
    shares = json.dumps([{"lines": requests, "lanes": lanes}])
    return {"lease": LEASE, "fleet": DEFAULT_FLEET, "pool": "spot", "shares": shares}


def test_lane_query_reads_few_rows(stale: Database) -> None:
    assert (
        rows_touched(
            stale, LANES[Pool.SPOT], fleet=DEFAULT_FLEET, pool="spot", most=100, without=[]
        )
        < 100
    )


@pytest.mark.parametrize("line", [0, 3000])
def test_claim_reads_few_rows_per_request(stale: Database, line: int) -> None:
    assert rows_touched(stale, TAKE, **claim_parameters(50, line)) < 50 * 20


def test_settlement_reads_few_rows_per_run(stale: Database) -> None:
    """Its requests are in four runs of many."""
    firsts = [1 + number * RUN_LINES for number in range(0, 16, 4)]
    lines = {first: f"{{[{first + 1},{first + 14})}}" for first in firsts}
    with stale.engine("worker").begin() as connection:
        connection.execute(text(TAKE), claim_parameters(2000))
        connection.execute(text(OTHER_CLAIMS))
        claimed_at = connection.execute(text("SELECT now()")).scalar_one().isoformat()
    given = [{"batch": NEW, "first": first, "lines": lines[first]} for first in firsts]
    assert rows_touched(stale, MINE, lease=LEASE, runs=json.dumps(given)) < 4 * 10
    mine = json.dumps([
        {"batch": NEW, "first": first, "claimed_at": claimed_at, "lines": lines[first]}
        for first in firsts
    ])  # fmt: skip
    sums = [
        {"batch_id": NEW, "tenant_id": TENANT, "fleet": DEFAULT_FLEET, "pool": "spot",
         "completed": 52, "failed": 0, "dead_lettered": 0, "input_tokens": 1, "output_tokens": 1,
         "cached_tokens": 0, "reasoning_tokens": 0, "replica_seconds": 1.0, "running_seconds": 1.0}
    ]  # fmt: skip
    parameters = {"mine": mine, "sums": json.dumps(sums), "letters": "[]", "shard": 1}
    assert rows_touched(stale, FINISH, lease=LEASE, **parameters) < 4 * 40
    assert rows_touched(stale, END_CLAIMS, lease=LEASE, mine=mine) < 4 * 20


def test_results_page_reads_few_rows_per_request(stale: Database) -> None:
    touched = rows_touched(stale, LINES, batch=NEW, after=1000, end=4000, limit=2000)
    assert touched < 2000 * 6

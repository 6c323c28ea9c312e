"""Statements read the same number of pages with a thousand and with a million queued requests.

Requests are queued in runs, or each in a run of its own, as after a million retries. Each statement runs as its role and is rolled back, with current statistics. Statements that must
count all rows, such as those of a tick, have a bound that grows with them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import text

from lowtide.batches import detail_store, request_store
from lowtide.batches import store as batches_store
from lowtide.batches.model import RequestStatus
from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.core.runs import RUN_LINES
from lowtide.dead_letters import store as dead_letters_store
from lowtide.dead_letters.model import LetterFilter
from lowtide.events import outbox
from lowtide.local.database import engine as admin_engine
from lowtide.local.files import SUPERUSER
from lowtide.pipeline import final_store
from lowtide.planning.escalation import Move
from lowtide.queue import claiming, draining, settling
from lowtide.queue import store as queue_store
from lowtide.queue.claims import Returned
from lowtide.scheduler import plan, samples, sweep
from lowtide.status import snapshot_store
from lowtide.tenants import store as tenants_store
from manifests.overlays import rendered
from tests.loads import fill
from tests.plans import nodes_of, vacuum
from tests.worlds import World, emptied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Database

pytestmark = pytest.mark.slow

BATCH_LINES, TENANTS, WORKERS, CLAIMS_PER_WORKER = 50_000, 4, 200, 48
BIG = {"queued_runs", "requests", "results", "claimed_runs", "batches"}
EMPTIED = (
    "files, batches, requests, queued_runs, claimed_runs, results, workers, tallies, dead_letters"
)
LEASE = "00000000-0000-7000-8000-000000000001"
LEVELS = json.dumps(
    [
        {"fleet": DEFAULT_FLEET, "pool": pool, "queued": 9, "running": 9, "desired": 9}
        for pool in ("spot", "dedicated")
    ]
)
FLEET = {"fleet": DEFAULT_FLEET}
SPOT = FLEET | {"pool": "spot"}
CLAIMS = """
INSERT INTO claimed_runs (batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, line, size,
  lines, attempts, interruptions, lost_leases, escalated, pool)
SELECT q.batch_id, q.tenant_id, w.id, q.deadline, now(), now(), min(q.line), count(*),
  range_agg(int4range(q.line, q.line + 1)), 0, 0, 0, false, 'spot'
FROM (SELECT *, row_number() OVER (ORDER BY batch_id, line) AS n FROM queue
  WHERE batch_id = :batch AND line <= :lines) q
JOIN (SELECT id, row_number() OVER (ORDER BY id) AS n FROM workers) w
  ON w.n = 1 + (q.n - 1) / :held
GROUP BY q.batch_id, q.tenant_id, w.id, q.deadline, (q.line - 1) / :run
"""
RESULTS = """
INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
  output_tokens, status_code, attempts, interruptions, succeeded, escalated, dead_lettered, pool,
  request_id, body)
SELECT batch_id, tenant_id, batch_id, now(), now(), line, 3, 5, 200, 1, 0, true, false, false, 'spot',
  'r', '{}' FROM queue WHERE batch_id = :batch AND line > :lines
"""


@dataclass
class Load:
    """A world with `lines` queued requests; batch `claimed` is half claimed and half finished."""

    world: World
    lines: int
    claimed: BatchId
    batch: BatchId
    dedicated: BatchId
    claim_pages: int
    measurements: dict[str, tuple[float, int]] = field(default_factory=dict)

    def lane(self) -> list[dict[str, object]]:
        rows = self.world.rows("SELECT id FROM batches WHERE id <> :held", held=self.claimed)
        return [{"batch": str(row.id), "at": "-infinity", "line": 0} for row in rows]


@pytest.fixture(
    scope="module",
    params=[(1000, RUN_LINES), (1_000_000, RUN_LINES), (1_000_000, 1)],
    ids=["1k", "1M", "1M single"],
)
def load(request: pytest.FixtureRequest, shared_database: Database) -> Iterator[Load]:
    """Batches of up to 50,000 requests of four tenants, and 200 workers with 48 claims each."""
    requests, run_lines = request.param
    world = World(emptied(shared_database))
    tenants = [DEFAULT_TENANT, *(world.tenant(f"scale {number}") for number in range(1, TENANTS))]
    count = max(4, requests // BATCH_LINES)
    each = requests // count
    ids = [
        fill(world, each, tenant=tenants[number % TENANTS], due_in=3600.0 * (number + 1))
        for number in range(count)
    ]
    claimed = fill(world, 2 * WORKERS * CLAIMS_PER_WORKER)
    if run_lines == 1:
        world.split_runs()
    world.run(
        "INSERT INTO workers (id, pool, name, expires_at) "
        "SELECT gen_random_uuid(), 'spot', 'w', now() FROM generate_series(2, :count)",
        count=WORKERS,
    )
    world.run(
        "INSERT INTO workers (id, pool, name, expires_at) "
        "VALUES (:lease, 'spot', 'w', now() + interval '1 h')",
        lease=LEASE,
    )
    world.run(
        CLAIMS,
        batch=claimed,
        lines=WORKERS * CLAIMS_PER_WORKER,
        held=CLAIMS_PER_WORKER,
        run=run_lines,
    )
    world.run(RESULTS, batch=claimed, lines=WORKERS * CLAIMS_PER_WORKER)
    world.run("DELETE FROM queued_runs WHERE batch_id = :batch", batch=claimed)
    world.run("UPDATE queued_runs SET pool = 'dedicated' WHERE batch_id = :batch", batch=ids[1])
    server = shared_database.server
    url = server.url(SUPERUSER, server.cluster.password, shared_database.name)
    with admin_engine(url).connect() as connection:
        vacuum(connection, EMPTIED.split(", "))
    # All claims are of one batch: the planner may read the whole table for each batch.
    pages = world.value("SELECT pg_relation_size('claimed_runs') / 8192") if run_lines == 1 else 0
    made = Load(world, requests, claimed, ids[0], ids[1], pages)
    yield made
    for name, (milliseconds, pages) in made.measurements.items():
        print(
            f"{requests:>9,} lines in runs of {run_lines:>3}  {name:<42} {milliseconds:9.2f} ms {pages:8,} pages"
        )


def run(load: Load, name: str, sql: str, *, role: str = "worker", **parameters: Any) -> Any:
    """Run a statement and roll it back; return its plan's nodes and the number of pages it read."""
    with load.world.database.engine(role).connect() as connection:
        if role == "api":
            tenant = {"tenant": str(DEFAULT_TENANT)}
            connection.execute(text("SELECT set_config('lowtide.tenant', :tenant, true)"), tenant)
        explain = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}")
        output = connection.execute(explain, parameters).scalar_one()
        connection.rollback()
    explained = (output if isinstance(output, list) else json.loads(output))[0]
    nodes = nodes_of(explained["Plan"])
    pages = explained["Plan"]["Shared Hit Blocks"] + explained["Plan"]["Shared Read Blocks"]
    load.measurements[name] = (explained["Execution Time"], pages)
    return nodes, pages


def _scanned(nodes: list[dict[str, Any]]) -> set[str]:
    return {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} & BIG


def _sorted_rows(nodes: list[dict[str, Any]]) -> int:
    """Return the rows of the largest sort."""
    sizes = [int(node["Actual Rows"]) for node in nodes if node["Node Type"] == "Sort"]
    return max(sizes, default=0)


def _shares(load: Load) -> str:
    lanes = load.lane()
    return json.dumps([{"lines": 25, "lanes": lanes[0::2]}, {"lines": 25, "lanes": lanes[1::2]}])


def _returned(load: Load) -> dict[str, Any]:
    """Return the parameters of statements that end all claims of a worker."""
    rows = load.world.rows(
        "SELECT batch_id, claimed_at, lines::text AS mine, size FROM claimed_runs WHERE lease_id = :l",
        l=LEASE,
    )
    assert sum(row.size for row in rows) == CLAIMS_PER_WORKER
    return {"lease": LEASE, "mine": settling._mine(rows)}


def _given(load: Load) -> dict[str, Any]:
    """Return the parameters of the statement that finds all claims of a worker."""
    rows = load.world.rows("SELECT batch_id, line FROM claims WHERE lease_id = :l", l=LEASE)
    returned = settling._by_line(Returned(row.batch_id, row.line, "") for row in rows)
    return {"lease": LEASE, "runs": settling._given(returned)}


def _finished(load: Load) -> dict[str, Any]:
    total = settling._Sum(load.claimed, DEFAULT_FLEET, "spot", DEFAULT_TENANT, CLAIMS_PER_WORKER)
    sums = msgspec.json.encode([total]).decode()
    return {**_returned(load), "sums": sums, "letters": "[]", "shard": 1}


def _requeued(load: Load) -> dict[str, Any]:
    extra = {"reason": "", "delay": 0, "failed": False, "interrupted": True}
    rows = load.world.rows("SELECT * FROM claims WHERE lease_id = :lease", lease=LEASE)
    runs = queue_store._runs([row._asdict() | extra for row in rows])
    return {"runs": msgspec.json.encode(runs).decode(), "open": [load.claimed]}


def _place(load: Load) -> str:
    return json.dumps([{"id": str(load.batch)}, {"id": str(load.claimed)}])


STATEMENTS: dict[str, tuple[str, Callable[[Load], dict[str, Any]], int]] = {
    "find lanes": (
        claiming.LANES[Pool.SPOT],
        lambda _: {**SPOT, "most": claiming.LANES_A_TENANT, "without": []},
        500,
    ),
    "claim 50": (
        claiming.TAKE,
        lambda load: {"lease": LEASE, "shares": _shares(load), **SPOT},
        1500,
    ),
    "unseen claims": (str(claiming._UNCONFIRMED), lambda _: {"lease": LEASE, "since": None}, 1000),
    "running requests of a tenant": (
        str(claiming._RUNNING),
        lambda _: {"tenants": [DEFAULT_TENANT]},
        1000,
    ),
    "find 48 claims": (settling.MINE, _given, 500),
    "end 48 claims": (settling.END_CLAIMS, _returned, 1000),
    "finish 48": (settling.FINISH, _finished, 2500),
    "requeue 48": (str(queue_store._REQUEUE), _requeued, 2500),
    "lock open batches": (
        str(queue_store._LOCK_OPEN),
        lambda load: {"batches": [load.batch, load.claimed]},
        100,
    ),
    "nothing queued": (draining.NOTHING_QUEUED, lambda load: {"batches": _place(load)}, 200),
    "drain": (
        str(draining._DRAIN),
        lambda load: {"batches": [load.batch, load.claimed]},
        200,
    ),
    "escalate 100": (
        plan.ESCALATE,
        lambda load: {**FLEET, "moves": plan.given([Move(load.batch, 100)])},
        6000,
    ),
    "give back 100": (
        plan.GIVE_BACK,
        lambda load: {**FLEET, "moves": plan.given([Move(load.dedicated, 100)])},
        6000,
    ),
    "revoke 100": (
        plan.REVOKE,
        lambda load: {**FLEET, "moves": plan.given([Move(load.claimed, 100)])},
        2000,
    ),
    "fall back 100": (
        plan.FALL_BACK,
        lambda load: {
            "source": DEFAULT_FLEET, "target": "other",
            "moves": json.dumps([{"batch": str(load.batch), "lines": 100}]),
        },
        6000,
    ),
    "a sample of the pools": (
        samples.SAMPLE,
        lambda _: {"levels": LEVELS, "last": None},
        1500,
    ),
    "expire": (str(sweep._EXPIRE), lambda _: {}, 200),
    "expiring": (str(sweep._EXPIRING), lambda _: {}, 200),
    "cancel after grace": (str(sweep._CANCEL_DUE), lambda _: {"grace": 1}, 200),
    "silent batches": (str(sweep._UNDRAINED), lambda _: {}, 500),
    "stalled batches": (str(sweep._STALLED), lambda _: {"age": 1}, 200),
    "expired leases": (str(sweep._EXPIRED_LEASES), lambda _: {"limit": 40}, 2000),
    "marks of risk": (
        str(plan._MARK_RISK),
        lambda load: {
            "risky": json.dumps(
                [{"batch": str(load.batch), "reason": "deadline_bound", "bound": {"open": 1}}]
            )
        },
        500,
    ),
    "batches to mark": (str(plan._LOCK_RISKY), lambda load: {"risky": [load.batch]}, 500),
    "dedicated replicas": (str(plan._FLEETS), lambda _: {}, 100),
    "events to send": (
        outbox.DUE,
        lambda _: {"limit": 100, "base": 10.0, "most": 300.0, "kept": 86_400.0},
        1000,
    ),
    "a tenant's use": (tenants_store.USE, lambda _: {"tenant": DEFAULT_TENANT}, 500),
    "finals, a page": (
        final_store.LINES,
        lambda load: {"batch": load.claimed, "after": 9000, "end": 20_000, "limit": 1000},
        10_000,
    ),
    "requests, a page": (
        request_store.PAGE,
        lambda load: {
            "batch": load.claimed, "after": 9000, "limit": 100, "status": None, "pool": None,
            "dead_lettered": None,
        },
        3000,
    ),
    "queued requests, a page": (
        detail_store.LINES[RequestStatus.QUEUED, False],
        lambda load: {"batch": load.batch, "after": 100, "limit": 101},
        5000,
    ),
    "running requests, a page": (
        detail_store.LINES[RequestStatus.RUNNING, False],
        lambda load: {"batch": load.claimed, "after": 100, "limit": 101},
        5000,
    ),
    "state of a request": (
        "SELECT * FROM request_states WHERE batch_id = :batch AND line = 100",
        lambda load: {"batch": load.batch},
        50,
    ),
    "batches, a page": (
        str(batches_store._PAGE),
        lambda _: {
            "tenant": DEFAULT_TENANT, "after": None, "limit": 21, "status": None, "user": None,
        },
        1000,  # the running requests of active batches are counted
    ),
    "dead letters, a page": (
        dead_letters_store.PAGE,
        lambda _: {
            **dead_letters_store.matches(DEFAULT_TENANT, LetterFilter()),
            "at": None, "after_batch": new_id(), "after_line": 0, "limit": 20,
        },
        100,
    ),
}  # fmt: skip


# The batches whose claims a statement counts; with claims of single requests, that may read all of them.
CLAIM_SCANS = {"drain": 1, "batches, a page": 6, "batches of a tick": 21, "loads by tenant": 21}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_reads_bounded_pages_at_any_depth(load: Load, name: str) -> None:
    """The bounds, in pages of 8 KB, are the same for 1,000 and for 1,000,000 requests."""
    sql, parameters, bound = STATEMENTS[name]
    nodes, pages = run(load, name, sql, **parameters(load))
    assert pages <= bound + load.claim_pages * CLAIM_SCANS.get(name, 0)
    if load.lines > BATCH_LINES:  # a small table is scanned
        assert _scanned(nodes) <= {"batches", "claimed_runs"}
    assert _sorted_rows(nodes) <= max(1000, WORKERS)


@pytest.mark.parametrize("name", ["infer-spot", "infer-dedicated"])
@pytest.mark.parametrize("where", ["keda", "knative/overlays/prod"])
def test_autoscaler_query_reads_bounded_pages(load: Load, where: str, name: str) -> None:
    (scaler,) = (
        one["spec"]
        for one in rendered(where)
        if (one["kind"], one["metadata"]["name"]) == ("ScaledObject", name)
    )
    sql = scaler["triggers"][0]["metadata"]["query"].replace(":", r"\:")
    nodes, pages = run(load, f"poll of {name} in {where}", sql, role="autoscaler")
    # A few for each open batch, however many of its requests are queued.
    assert pages <= 1000
    walks = [node for node in nodes if node.get("Relation Name") == "queued_runs"]
    if load.lines > BATCH_LINES:  # a small table is scanned
        assert [walk["Node Type"] for walk in walks] == ["Index Only Scan"]


@pytest.mark.parametrize("function", ["open work", "living workers"])
def test_admission_functions_read_bounded_pages(load: Load, function: str) -> None:
    sql = f"SELECT * FROM {function.replace(' ', '_')}()"  # noqa: S608
    _, pages = run(load, function, sql, role="api")
    assert pages <= 2100


def test_tick_query_reads_bounded_pages(load: Load) -> None:
    """The query derives the requests that are queued for spot from the others instead of counting them."""
    _, pages = run(load, "batches of a tick", plan.BATCHES)
    scans = CLAIM_SCANS["batches of a tick"]
    assert pages <= 1000 + load.lines / 200 + load.claim_pages * scans


def test_tenant_loads_read_bounded_pages(load: Load) -> None:
    """The query counts by tenant, and reads one index entry per batch and pool."""
    nodes, pages = run(load, "loads by tenant", snapshot_store.TENANTS)
    scans = CLAIM_SCANS["loads by tenant"]
    assert pages <= 1500 + load.lines / 250 + load.claim_pages * scans
    if load.lines > BATCH_LINES:
        assert "queued_runs" not in _scanned(nodes)


def test_reaping_reads_claims_and_not_queue(load: Load) -> None:
    """The query reads `claimed_runs` once, whose size does not depend on the queue."""
    load.world.run("UPDATE workers SET expires_at = now() WHERE id <> :lease", lease=LEASE)
    nodes, pages = run(load, "orphans", str(sweep._LOST_REQUESTS), most=5, limit=20_000)
    assert "queued_runs" not in {node.get("Relation Name") for node in nodes}
    assert pages < 2000

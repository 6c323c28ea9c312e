"""One process of a queue benchmark, started by `queue.py` and `storm.py`.

    python -m bench.queue_steps fill LINES BATCHES TENANTS FLEETS
    python -m bench.queue_steps drain SET SECONDS
    python -m bench.queue_steps pgqueuer-fill URL LINES
    python -m bench.queue_steps pgqueuer-drain URL SET SECONDS

A drain prints `ready`, waits for a line on standard input, and works until the queue is empty or
SECONDS have passed. Prints its figures as one JSON line; a drain then waits for the end of its
input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from lowtide.app import App
from lowtide.core.ids import new_id
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.engines.outcomes import Usage
from lowtide.queue.claims import Finished
from lowtide.queue.store import QueueStore
from lowtide.settings import read_settings

APP = App(read_settings())
BODY = json.dumps({"object": "bench", "text": "x" * 270}).encode()
LINE_BYTES = 600
JOB = "bench"
ENQUEUED = 5000
OTHERS = 4000
BATCH = """
INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, completion_window,
  status, created_at, deadline, total, fleet)
VALUES (:batch, :tenant, 'bench', :batch, 'k', '/v1/embeddings', '24h', 'in_progress', now(),
  now() + interval '1 day', :lines, :fleet)
"""
REQUESTS = """
INSERT INTO requests SELECT :batch, n, :tenant, n * :bytes, :bytes, 'request-' || n
FROM generate_series(1, :lines) n
"""
QUEUE = """
INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, size, lines,
  fleet, pool)
SELECT b.id, b.tenant_id, b.deadline, now(), now(), r.line, r.size, r.lines, b.fleet, 'spot'
FROM batches b, (
  SELECT min(n) AS line, count(*) AS size, int4multirange(int4range(min(n), max(n) + 1)) AS lines
  FROM generate_series(1, :lines) n GROUP BY (n - 1) / 128) r
WHERE b.id = :batch
"""


def fill(lines: int, batches: int, tenants: int, fleets: int) -> dict[str, Any]:
    """Queue requests of several batches and tenants, as splits do.

    Every further fleet gets one batch of OTHERS requests, which nobody claims.
    """
    with APP.database.begin() as connection:
        known = connection.execute(text("SELECT id FROM tenants ORDER BY name")).scalars().all()
        sizes = [(DEFAULT_FLEET, lines // batches)] * batches
        sizes += [(f"fleet-{number}", OTHERS) for number in range(1, fleets)]
        for number, (fleet, size) in enumerate(sizes):
            values = {
                "batch": new_id(),
                "tenant": known[number % min(tenants, len(known))],
                "lines": size,
                "bytes": LINE_BYTES,
                "fleet": fleet,
            }
            for statement in (BATCH, REQUESTS, QUEUE):
                connection.execute(text(statement), values)
    return {"lines": lines // batches * batches}


def drain(size: int, seconds: float) -> dict[str, Any]:
    """Claim sets of requests, and settle them with results of about 300 bytes."""
    queue = QueueStore(APP.database, new_id=new_id, lease_duration=600.0)
    lease = queue.open_lease(Pool.SPOT, "bench")
    usage = Usage(20, 40)
    queue.claim(lease, Pool.SPOT, 0)
    _wait()
    lines, waits, used, began = 0, [], time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        asked = time.perf_counter()
        claims = queue.claim(lease, Pool.SPOT, size)
        if not claims:
            break
        waits.append(time.perf_counter() - asked)
        finished = [
            Finished(claim.batch, claim.line, True, 1, usage, 200, "req", BODY) for claim in claims
        ]
        lines += queue.settle(lease, finished, []).finished
    ended = time.perf_counter()
    return {
        "lines": lines, "seconds": ended - began, "cpu": time.process_time() - used, "waits": waits,
    }  # fmt: skip


async def pgqueuer_fill(url: str, lines: int) -> dict[str, Any]:
    """Queue jobs of PGQueuer."""
    queries = await _queries(url)
    await queries.install()
    for _ in range(lines // ENQUEUED):
        await queries.enqueue([JOB] * ENQUEUED, [b"x"] * ENQUEUED, [0] * ENQUEUED)
    return {"lines": lines // ENQUEUED * ENQUEUED}


async def pgqueuer_drain(url: str, size: int, seconds: float) -> dict[str, Any]:
    """Dequeue and log sets of PGQueuer's jobs: less work than `drain`, as there are no results."""
    from pgqueuer.ports.repository import EntrypointExecutionParameter

    queries = await _queries(url)
    accepted = {JOB: EntrypointExecutionParameter(concurrency_limit=0)}
    manager, heartbeat = uuid.uuid4(), timedelta(minutes=10)
    _wait()
    lines, used, began = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        jobs = await queries.dequeue(size, accepted, manager, None, heartbeat)
        if not jobs:
            break
        await queries.log_jobs([(job, "successful", None) for job in jobs])
        lines += len(jobs)
    ended = time.perf_counter()
    return {"lines": lines, "seconds": ended - began, "cpu": time.process_time() - used}


async def _queries(url: str) -> Any:
    import asyncpg
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.queries import Queries

    return Queries(AsyncpgDriver(await asyncpg.connect(url)))


def _wait() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def main(step: str, *arguments: str) -> None:
    """Run one step."""
    if step == "fill":
        found = fill(*map(int, arguments))
    elif step == "drain":
        found = drain(int(arguments[0]), float(arguments[1]))
    elif step == "pgqueuer-fill":
        found = asyncio.run(pgqueuer_fill(arguments[0], int(arguments[1])))
    else:
        url, size, seconds = arguments
        found = asyncio.run(pgqueuer_drain(url, int(size), float(seconds)))
    print(json.dumps(found), flush=True)
    if step.endswith("drain"):
        sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Search at 1,000,000 requests: every kind of text, beside a lookup by primary key in the same run.

    python -m bench.search [--rounds N] [--quick]

The requests are in 20 batches of 50,000 of four tenants, with custom_ids in several styles; one batch
is not indexed yet. Prints p50 and p95 of each kind of search in milliseconds as a tenant and as an
operator, and their ratio to the lookup, then those of the list of batches and the batch page in the
same database, then one JSON line; exits with 1 if a p95 is above 100 ms.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

from bench.portal import EVERYTHING, PAGE
from bench.portal_volume import filled
from bench.stage import Stage
from lowtide.batches.detail_store import BatchDetailStore
from lowtide.batches.list_store import BatchListStore
from lowtide.batches.views import BatchOrder
from lowtide.core.ids import (
    DEFAULT_TENANT,
    BatchId,
    FileId,
    TenantId,
    format_batch_id,
    format_file_id,
    format_request_id,
)
from lowtide.database.connections import connect
from lowtide.search.indexing import SearchIndexer
from lowtide.search.service import Search
from lowtide.search.store import SearchStore
from lowtide.tenants.sign_in import reading_as

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection, Engine

BAR_MS = 100.0
BATCHES, TENANTS = 20, 4
TABLES = "batches, files, requests, batch_terms, custom_ids, search_backlog, tallies"

NEW_TENANTS = """
INSERT INTO tenants (id, name) SELECT gen_random_uuid(), 'tenant ' || n
FROM generate_series(2, :tenants) n
"""
NEW_BATCHES = """
INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, model,
  completion_window, status, created_at, deadline, in_progress_at, total, metadata)
SELECT cast(lpad(to_hex(cast(extract(epoch FROM now()) * 1000 AS bigint) + n), 12, '0') || '70008'
    || lpad(to_hex(n), 15, '0') AS uuid),
  t.id, 'user-' || mod(n, 7), gen_random_uuid(), 'input', '/v1/chat/completions', 'llama-3.1-8b',
  '24h', 'in_progress', now(), now() + interval '24 hours', now(), :lines,
  jsonb_build_object('run', 'nightly-' || n)
FROM generate_series(1, :batches) n
JOIN (SELECT id, row_number() OVER (ORDER BY name) AS number FROM tenants) t
  ON t.number = 1 + mod(n, :tenants)
"""
NEW_FILES = """
INSERT INTO files (id, tenant_id, purpose, filename, bytes, lines, sha256, object_key, status,
  created_at)
SELECT input_file_id, tenant_id, 'batch', 'input.jsonl', 1, total, '', 'input', 'processed', now()
FROM batches
"""
NEW_TERMS = """
INSERT INTO batch_terms (batch_id, tenant_id, field, value)
SELECT id, tenant_id, 'user', user_id FROM batches
UNION ALL SELECT id, tenant_id, 'metadata.run', metadata ->> 'run' FROM batches
"""
# Styles of custom_ids by batch: counted, random, with a long common prefix, and the same in every
# batch.
NEW_REQUESTS = """
INSERT INTO requests (batch_id, line, tenant_id, start, length, custom_id)
SELECT b.id, line, tenant_id, (line - 1) * 600, 599,
  CASE mod(row_number, 5)
    WHEN 0 THEN 'request-' || lpad(line::text, 7, '0')
    WHEN 1 THEN gen_random_uuid()::text
    WHEN 2 THEN 'https://example.org/articles/2026/11/' || row_number || '/' || line
    WHEN 3 THEN 'doc_' || row_number || '_chunk_' || line
    ELSE line::text END
FROM (SELECT *, row_number() OVER (ORDER BY id) FROM batches) b, generate_series(1, total) line
"""
NEW_BACKLOG = "INSERT INTO search_backlog SELECT id, tenant_id FROM batches"
NEW_TALLIES = """
INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed)
SELECT id, 'spot', gen_random_uuid(), tenant_id, total / 2 FROM batches
"""
SAMPLES = """
SELECT r.batch_id, r.line, r.custom_id, b.input_file_id, b.user_id, b.metadata ->> 'run' AS run
FROM batches b CROSS JOIN LATERAL (
  SELECT * FROM requests WHERE batch_id = b.id AND line = ANY(:lines)) r
WHERE b.tenant_id = :tenant
"""
NEWEST = text("SELECT id FROM batches ORDER BY id DESC LIMIT 1")
LOOKUP = text("SELECT custom_id FROM requests WHERE batch_id = :batch AND line = :line")


def fill(stage: Stage, lines: int) -> float:
    """Fill an empty database; return the seconds that indexing took. The newest batch is last."""
    owner, worker = (connect(stage.url(role), timeout=600) for role in ("owner", "worker"))
    operator = connect(stage.url("operator"), timeout=600)
    sizes = {"batches": BATCHES, "tenants": TENANTS, "lines": lines}
    with operator.begin() as connection:
        connection.execute(text(NEW_TENANTS), sizes)
        connection.execute(text(NEW_BATCHES), sizes)
        connection.execute(text(NEW_FILES))
        connection.execute(text(NEW_TERMS))
    with worker.begin() as connection:
        for statement in (NEW_REQUESTS, NEW_BACKLOG, NEW_TALLIES):
            connection.execute(text(statement))
    began = time.perf_counter()
    SearchIndexer(worker).index(limit=(BATCHES - 1) * lines)
    seconds = time.perf_counter() - began
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"VACUUM ANALYZE {filled(connection, TABLES)}"))
    for engine in (owner, worker, operator):
        engine.dispose()
    return seconds


def texts(connection: Connection, tenant: TenantId, rng: random.Random) -> dict[str, list[str]]:
    """Return search texts of each kind."""
    lines = sorted(rng.sample(range(1, 1000), 40))
    rows = list(connection.execute(text(SAMPLES), {"lines": lines, "tenant": tenant}))
    rng.shuffle(rows)
    batches = [format_batch_id(BatchId(row.batch_id)) for row in rows]
    files = [format_file_id(FileId(row.input_file_id)) for row in rows]
    requests = [format_request_id(BatchId(row.batch_id), row.line) for row in rows]
    names = [row.custom_id for row in rows]
    return {
        "batch id": batches,
        "batch id without its prefix": [batch.removeprefix("batch_") for batch in batches],
        "start of a batch id": [batch[: rng.randrange(8, 38)] for batch in batches],
        "file id": files,
        "start of a file id": [file[: rng.randrange(7, 37)] for file in files],
        "request id": requests,
        "start of a request id": [request[: rng.randrange(12, 50)] for request in requests],
        "custom_id": names,
        "start of a custom_id": [
            name[: rng.randrange(2, len(name) + 1)] for name in names if name[1:]
        ],
        "user": [row.user_id for row in rows],
        "metadata value": [row.run for row in rows],
        "start of a metadata value": [row.run[: rng.randrange(2, 8)] for row in rows],
        "two characters": [name[:2] for name in names if name[1:]],
        "nothing": [f"absent-{rng.random()}" for _ in rows],
    }


def measured(calls: Iterator[Callable[[], object]], rounds: int) -> tuple[float, float]:
    """Return p50 and p95 in milliseconds of different calls, after one to warm up."""
    next(calls)()
    taken = []
    for _ in range(rounds):
        call = next(calls)
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]


def searches(
    engine: Engine, scope: TenantId | None, kinds: dict[str, list[str]], rounds: int
) -> dict[str, tuple[float, float]]:
    """Measure every kind of search."""
    search = Search(SearchStore(engine))

    return {
        kind: measured((partial(search.find, scope, one) for one in cycle(said)), rounds)
        for kind, said in kinds.items()
    }


def lookups(engine: Engine, requests: Sequence[str], rounds: int) -> tuple[float, float]:
    """Measure lookups of requests by primary key, as a tenant."""
    places = [(request[10:42], int(request[42:], 16)) for request in requests]

    def look(batch: str, line: int) -> object:
        with reading_as(engine, DEFAULT_TENANT) as connection:
            return connection.execute(LOOKUP, {"batch": batch, "line": line}).scalar_one()

    return measured((partial(look, *place) for place in cycle(places)), rounds)


def pages(engine: Engine, batch: BatchId, rounds: int) -> dict[str, tuple[float, float]]:
    """Measure the list of batches and the batch page."""
    lists, details = BatchListStore(engine), BatchDetailStore(engine)

    def page() -> object:
        details.details(None, batch)
        return details.lines(None, batch, None, after=0, limit=PAGE)

    calls: dict[str, Callable[[], object]] = {
        "list of batches": lambda: lists.page(
            None, EVERYTHING, BatchOrder.NEWEST, after=None, limit=PAGE
        ),
        "batch page": page,
    }
    return {name: measured(cycle([call]), rounds) for name, call in calls.items()}


def run(stage: Stage, lines: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Measure everything in a filled database."""
    api, operator = (connect(stage.url(role), timeout=300) for role in ("api", "operator"))
    with reading_as(operator, None) as connection:
        kinds = texts(connection, DEFAULT_TENANT, random.Random(lines))  # noqa: S311
        newest = BatchId(connection.execute(NEWEST).scalar_one())
    figures = {"primary key": lookups(api, kinds["request id"], rounds)}
    for role, engine, scope in (("tenant", api, DEFAULT_TENANT), ("operator", operator, None)):
        for kind, figure in searches(engine, scope, kinds, rounds).items():
            figures[f"{kind}, {role}"] = figure
    figures |= pages(operator, newest, rounds)
    for engine in (api, operator):
        engine.dispose()
    return figures


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=200, help="searches of each kind")
    parser.add_argument("--quick", action="store_true", help="a tenth of all sizes")
    arguments = parser.parse_args()
    share = 10 if arguments.quick else 1
    lines = 50_000 // share
    folder = Path(tempfile.mkdtemp(prefix="bench-search-"))
    try:
        with Stage(folder) as stage:
            seconds = fill(stage, lines)
            figures = run(stage, lines, max(20, arguments.rounds // share))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"indexed {(BATCHES - 1) * lines:,} requests in {seconds:.1f} s")
    base = figures["primary key"][0]
    for name, (middle, high) in figures.items():
        print(f"{name:40} p50 {middle:7.1f} ms   p95 {high:7.1f} ms   {middle / base:6.1f} x")
    print(json.dumps({name: [round(each, 2) for each in pair] for name, pair in figures.items()}))
    slow = [name for name, (_, high) in figures.items() if high > BAR_MS]
    if slow:
        raise SystemExit(f"Above {BAR_MS:g} ms: {', '.join(slow)}")


if __name__ == "__main__":
    main()

"""Large batches, and the number of pages that a statement reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, BatchId, TenantId, new_id

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.worlds import World

_BATCH = """
INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, completion_window,
  status, created_at, deadline, total, priority)
VALUES (:id, :tenant, 'u', :id, 'k', '/v1/embeddings', '24h', 'in_progress', now(),
  now() + make_interval(secs => :due_in), :lines, :priority)
"""
_REQUESTS = """
INSERT INTO requests (batch_id, line, tenant_id, start, length, custom_id)
SELECT :id, n, :tenant, n * 100, 90, n::text FROM generate_series(1, :lines) AS n
"""
_QUEUE = """
INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, size, lines, pool)
SELECT :id, :tenant, b.deadline, now() + make_interval(secs => :delay), now(), r.line, r.size, r.lines,
  :pool
FROM batches b, (
  SELECT min(n) AS line, count(*) AS size, int4multirange(int4range(min(n), max(n) + 1)) AS lines
  FROM generate_series(1, :lines) AS n GROUP BY (n - 1) / 128) r
WHERE b.id = :id
"""


def fill(
    world: World,
    lines: int,
    *,
    tenant: TenantId = DEFAULT_TENANT,
    due_in: float = 86_400.0,
    delay: float = 0.0,
    pool: str = "spot",
    priority: int = 0,
    batch: BatchId | None = None,
) -> BatchId:
    """Queue a batch of `lines` requests, available after `delay` seconds, with one statement per table."""
    batch = batch or BatchId(new_id())
    values = {"id": batch, "tenant": tenant, "lines": lines, "pool": pool}
    with world.worker.begin() as connection:
        connection.execute(text(_BATCH), values | {"due_in": due_in, "priority": priority})
        connection.execute(text(_REQUESTS), values)
        connection.execute(text(_QUEUE), values | {"delay": delay})
    return batch


def tenant_with(world: World, name: str, **columns: int) -> TenantId:
    """Create a tenant with a `weight` or limits."""
    tenant = world.tenant(name)
    with world.database.engine("operator").begin() as connection:
        for column, value in columns.items():
            connection.execute(
                text(f"UPDATE tenants SET {column} = :value WHERE id = :id"),  # noqa: S608
                {"value": value, "id": tenant},
            )
    return tenant


def pages_read(engine: Engine, sql: str, **parameters: Any) -> int:
    """Run a statement, roll it back and return the number of pages it read.

    It runs twice: the functions that it calls are planned in the first run, which reads catalogs.
    """
    with engine.connect() as connection:
        explain = text(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}")
        for _ in range(2):
            output = connection.execute(explain, parameters).scalar_one()
            connection.rollback()
    plan = (output if isinstance(output, list) else json.loads(output))[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

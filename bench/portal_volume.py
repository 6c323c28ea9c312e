"""Test data for the portal: 10,000 batches, 1,000,000 requests and a week of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, BatchId

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# The newest batch has 50,000 requests, the maximum of a file; the others share the rest.
BATCHES = """
INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, model,
  completion_window, status, created_at, deadline, in_progress_at, completed_at, expired_at,
  cancelled_at, at_risk, total, completed, failed)
SELECT cast(lpad(to_hex(milliseconds), 12, '0') || '7000' || '8' || lpad(to_hex(n), 15, '0') AS uuid),
  :tenant, 'user-' || mod(n, 97), gen_random_uuid(), 'input', '/v1/chat/completions', 'llama-3.1-8b',
  '24h', status, created, created + interval '24 hours', created,
  CASE WHEN status = 'completed' THEN created + mod(n, 30) * interval '1 hour' END,
  CASE WHEN status = 'expired' THEN created + interval '24 hours' END,
  CASE WHEN status = 'cancelled' THEN created + interval '1 hour' END,
  status = 'in_progress' AND mod(n, 7) = 0, lines, lines * 9 / 10, lines / 10
FROM (
  SELECT n, now() - (size.batches - n) * interval '1 minute' AS created,
    cast(extract(epoch FROM now() - (size.batches - n) * interval '1 minute') * 1000 AS bigint)
      AS milliseconds,
    CASE WHEN n = size.batches OR mod(n, 50) = 0 THEN 'in_progress'
      WHEN mod(n, 40) = 1 THEN 'expired' WHEN mod(n, 40) = 2 THEN 'cancelled'
      ELSE 'completed' END AS status,
    CASE WHEN n = size.batches THEN largest ELSE others END AS lines
  FROM (SELECT cast(:batches AS integer) AS batches, cast(:largest AS integer) AS largest,
      cast(:others AS integer) AS others) size, generate_series(1, size.batches) n
) made
"""
REQUESTS = """
INSERT INTO requests (batch_id, line, tenant_id, start, length, custom_id)
SELECT id, line, tenant_id, (line - 1) * 600, 599, 'request-' || line
FROM batches, generate_series(1, total) line
"""
RESULTS = """
INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
  output_tokens, status_code, attempts, interruptions, succeeded, escalated, dead_lettered, pool,
  request_id, body, error_code, error_message)
SELECT r.batch_id, r.tenant_id, :tenant, b.created_at, b.created_at, line, 100, 200,
  CASE WHEN mod(line, 10) <> 0 THEN 200 END, 1, 0, mod(line, 10) <> 0, false, mod(line, 20) = 0, 'spot',
  'request', CASE WHEN mod(line, 10) <> 0 THEN '{"choices": []}' END,
  CASE WHEN mod(line, 10) = 0 THEN 'engine_error' END,
  CASE WHEN mod(line, 10) = 0 THEN 'The engine failed in way ' || mod(line, 30) END
FROM requests r JOIN batches b ON b.id = r.batch_id
WHERE b.status IN ('completed', 'expired') OR line <= b.total * 9 / 10
"""
QUEUE = """
INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, size, lines, pool)
SELECT b.id, b.tenant_id, b.deadline, b.created_at, b.created_at, min(r.line), count(*),
  range_agg(int4range(r.line, r.line + 1)), 'spot'
FROM requests r JOIN batches b ON b.id = r.batch_id
WHERE b.status = 'in_progress' AND line > b.total * 9 / 10
GROUP BY b.id, (r.line - 1) / 128
"""
TALLIES = """
INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed, failed, dead_lettered, interrupted)
SELECT batch_id, 'spot', gen_random_uuid(), tenant_id, count(*) FILTER (WHERE succeeded),
  count(*) FILTER (WHERE NOT succeeded), count(*) FILTER (WHERE dead_lettered), 1
FROM results GROUP BY batch_id, tenant_id, mod(line, 4)
"""
NOTES = """
INSERT INTO request_events (tenant_id, batch_id, line, kind, pool, detail)
SELECT tenant_id, id, line, CASE WHEN mod(line, 3) = 0 THEN 'interrupted' ELSE 'retried' END, 'spot',
  'The worker was told to stop'
FROM batches, generate_series(1, CASE WHEN id = :largest_batch THEN least(total, 5000) ELSE 20 END) line
"""
SAMPLES = """
INSERT INTO pool_samples (at, pool, queued, running, oldest_age, desired, live, seconds, done,
  interrupted, replica_seconds)
SELECT now() - n * interval '1 minute', pool, mod(n, 5000), 96, 60, 4, 3, 60, 3000, mod(n, 3), 120
FROM generate_series(0, 10080) n, unnest(ARRAY['spot', 'dedicated']) pool
"""
TABLES = "batches, requests, results, queued_runs, tallies, request_events, pool_samples"


def fill(
    worker: Engine, owner: Engine, *, batches: int, requests: int, largest: int = 50_000
) -> BatchId:
    """Fill an empty database; return the largest batch, which is the newest and in progress."""
    others = (requests - largest) // (batches - 1)
    sizes = {"batches": batches, "largest": largest, "others": others}
    tenant = {"tenant": DEFAULT_TENANT}
    with worker.begin() as connection:
        connection.execute(text(BATCHES), sizes | tenant)
        newest = connection.execute(text("SELECT max(id::text)::uuid FROM batches")).scalar_one()
        for statement, parameters in (
            (REQUESTS, {}),
            (RESULTS, tenant),
            (QUEUE, {}),
            (TALLIES, {}),
            (NOTES, {"largest_batch": newest}),
            (SAMPLES, {}),
        ):
            connection.execute(text(statement), parameters)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"VACUUM ANALYZE {filled(connection, TABLES)}"))
    return BatchId(newest)


def filled(connection: Connection, tables: str) -> str:
    """Return tables with their partitions that have rows, as autovacuum treats them."""
    names = text("""
        SELECT coalesce(p.name, t) FROM unnest(string_to_array(:tables, ', ')) t
        LEFT JOIN data_partitions p ON p.parent = t
        WHERE p.name IS NULL OR pg_relation_size(p.relation) > 0""")
    return ", ".join(connection.execute(names, {"tables": tables}).scalars())

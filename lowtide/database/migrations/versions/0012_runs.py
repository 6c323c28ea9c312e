"""Runs: one row of the queue, or of the claims, for requests of a batch with the same history."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.isolation import isolated
from lowtide.database.migrations.views import GRANTS, RUN_BATCH_STATES, RUN_REQUEST_STATES

revision = "0012"
down_revision = "0011"

RUN_LINES = 128

FUNCTIONS = """
CREATE FUNCTION line_count(lines int4multirange) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT coalesce(sum(upper(r) - lower(r)), 0)::integer FROM unnest(lines) r
$$;
CREATE FUNCTION lines_in(lines int4multirange) RETURNS SETOF integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 10 AS $$
  SELECT line FROM unnest(lines) r CROSS JOIN LATERAL generate_series(lower(r), upper(r) - 1) line
$$;
CREATE FUNCTION first_lines(lines int4multirange, most integer) RETURNS int4multirange
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT range_agg(int4range(low, least(high, low + most - before))) FROM (
    SELECT lower(r) AS low, upper(r) AS high, coalesce(sum(upper(r) - lower(r)) OVER (
      ORDER BY r ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)::integer AS before
    FROM unnest(lines) r) p
  WHERE before < most
$$;
"""

_GRANTS = """
GRANT SELECT, DELETE ON queued_runs TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON queued_runs TO lowtide_worker;
GRANT SELECT ON queued_runs TO lowtide_autoscaler;
GRANT SELECT ON claimed_runs TO lowtide_api, lowtide_operator, lowtide_autoscaler;
GRANT SELECT, INSERT, UPDATE, DELETE ON claimed_runs TO lowtide_worker;
"""

RUNS = f"""
-- The `size` requests of `lines`: all of one batch, with the same history, in one block of {RUN_LINES}
-- lines. `line` is the first one. A request that is retried, escalated or lost becomes a run of its own.
CREATE TABLE queued_runs (
  batch_id uuid NOT NULL,
  tenant_id uuid NOT NULL,
  deadline timestamptz NOT NULL,
  available_at timestamptz NOT NULL,
  queued_at timestamptz NOT NULL,
  line integer NOT NULL,
  size integer NOT NULL DEFAULT 1 CHECK (size > 0),
  attempts smallint NOT NULL DEFAULT 0,
  interruptions smallint NOT NULL DEFAULT 0,
  lost_leases smallint NOT NULL DEFAULT 0,
  escalated boolean NOT NULL DEFAULT false,
  fleet text NOT NULL DEFAULT 'default',
  pool text NOT NULL,
  lines int4multirange NOT NULL CHECK (lower(lines) = line),
  PRIMARY KEY (batch_id, line)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
-- A claim reads the requests of one batch in one pool in the order in which they became available.
CREATE INDEX queued_runs_claim ON queued_runs (fleet, pool, batch_id, available_at, line)
  INCLUDE (size);
{isolated("queued_runs")}
-- The owner runs open_work() and waiting_requests(), and FORCE binds the owner too.
CREATE POLICY owner ON queued_runs FOR SELECT TO CURRENT_USER USING (true);

-- `line` stays the first line that was claimed, while `lines` and `size` are those that still run.
CREATE TABLE claimed_runs (
  batch_id uuid NOT NULL,
  tenant_id uuid NOT NULL,
  lease_id uuid NOT NULL,
  deadline timestamptz NOT NULL,
  queued_at timestamptz NOT NULL,
  claimed_at timestamptz NOT NULL,
  line integer NOT NULL,
  size integer NOT NULL DEFAULT 1 CHECK (size > 0),
  attempts smallint NOT NULL,
  interruptions smallint NOT NULL,
  lost_leases smallint NOT NULL,
  escalated boolean NOT NULL,
  fleet text NOT NULL DEFAULT 'default',
  pool text NOT NULL,
  lines int4multirange NOT NULL,
  PRIMARY KEY (batch_id, line, claimed_at)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, fillfactor = 70);
CREATE INDEX claimed_runs_of_lane ON claimed_runs (fleet, pool, tenant_id);
{isolated("claimed_runs")}
{_GRANTS}
"""

# What was queued in one split differs by a microsecond a line. Everything else stays a run of one line.
CONVERT = f"""
DROP VIEW request_states, batch_states;
ALTER TABLE queue NO FORCE ROW LEVEL SECURITY;
ALTER TABLE claims NO FORCE ROW LEVEL SECURITY;
ALTER TABLE queued_runs NO FORCE ROW LEVEL SECURITY;
ALTER TABLE claimed_runs NO FORCE ROW LEVEL SECURITY;
INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, size, attempts,
  interruptions, lost_leases, escalated, fleet, pool, lines)
SELECT batch_id, tenant_id, deadline, min(available_at), queued_at, min(line), count(*), attempts,
  interruptions, lost_leases, escalated, fleet, pool, range_agg(int4range(line, line + 1))
FROM queue GROUP BY batch_id, tenant_id, deadline, queued_at, attempts, interruptions, lost_leases,
  escalated, fleet, pool, (line - 1) / {RUN_LINES}, available_at - line * interval '1 microsecond';
INSERT INTO claimed_runs (batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, line, attempts,
  interruptions, lost_leases, escalated, fleet, pool, lines)
SELECT batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, line, attempts, interruptions,
  lost_leases, escalated, fleet, pool, int4multirange(int4range(line, line + 1)) FROM claims;
ALTER TABLE queued_runs FORCE ROW LEVEL SECURITY;
ALTER TABLE claimed_runs FORCE ROW LEVEL SECURITY;
DROP TABLE queue, claims;
"""  # noqa: S608

REQUESTS_OF_RUNS = """
-- A row for each request, for people. Processes of the previous release fail on them: what they have
-- claimed runs again once their lease has expired.
CREATE VIEW queue WITH (security_invoker = true) AS
SELECT batch_id, tenant_id, deadline, available_at, queued_at, l.line, attempts, interruptions,
  lost_leases, escalated, fleet, pool FROM queued_runs q CROSS JOIN LATERAL lines_in(q.lines) l (line);
CREATE VIEW claims WITH (security_invoker = true) AS
SELECT batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, l.line, attempts,
  interruptions, lost_leases, escalated, fleet, pool
FROM claimed_runs c CROSS JOIN LATERAL lines_in(c.lines) l (line);
GRANT SELECT ON queue, claims TO lowtide_api, lowtide_worker, lowtide_operator, lowtide_autoscaler;
"""

SEGMENTS = """
-- Since drained_at no request of the segment is left to run: its pieces are written while others run.
ALTER TABLE segments ADD COLUMN drained_at timestamptz;
CREATE INDEX segments_running ON segments (batch_id, first_line)
  WHERE split_at IS NOT NULL AND drained_at IS NULL;
"""

WAITING = """
CREATE OR REPLACE FUNCTION waiting_requests(of_fleet text, of_pool text, most integer) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT least(most, coalesce(sum(size), 0)) FROM (
    SELECT q.size FROM batches b CROSS JOIN LATERAL (
      SELECT size FROM queued_runs
      WHERE fleet = of_fleet AND pool = of_pool AND batch_id = b.id
      ORDER BY available_at LIMIT most) q
    WHERE b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
      AND coalesce(b.fleet, of_fleet) = of_fleet
      AND NOT EXISTS (
        SELECT FROM exhausted_quotas WHERE tenant_id = b.tenant_id AND until > now())
      AND NOT EXISTS (SELECT FROM paused_pools WHERE fleet = of_fleet AND pool = of_pool)
    LIMIT most) counted
$$;
"""
RESULTS = """
-- Workers COPY results into the partition of a batch: COPY into the parent is refused, which has
-- row-level security. Nobody else has access to a partition other than through its parent.
CREATE OR REPLACE FUNCTION make_partitions(batch uuid) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  day date := day_of(batch);
  suffix text := to_char(day, 'YYYYMMDD');
  known text[];
  made integer := 0;
  table_ text;
  partition text;
BEGIN
  IF (SELECT count(to_regclass(t || '_' || suffix)) FROM unnest(ARRAY['requests', 'results', 'custom_ids', 'request_events', 'dead_letters']) t) = 5 THEN
    RETURN 0;
  END IF;
  known := ARRAY(SELECT parent FROM data_partitions WHERE coalesce(low <= batch, true) AND batch < high);
  IF cardinality(known) = 5 THEN
    RETURN 0;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended('partitions', 0));
  known := ARRAY(SELECT parent FROM data_partitions WHERE coalesce(low <= batch, true) AND batch < high);
  FOREACH table_ IN ARRAY ARRAY['requests', 'results', 'custom_ids', 'request_events', 'dead_letters'] LOOP
    CONTINUE WHEN table_ = ANY(known);
    partition := table_ || '_' || suffix;
    EXECUTE format(
      'CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES)', partition, table_);
    IF table_ = 'results' THEN
      EXECUTE format('GRANT INSERT ON %I TO lowtide_worker', partition);
    ELSE
      EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', partition);
    END IF;
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
      table_, partition, first_id(day), first_id(day + 1));
    PERFORM name_indexes(partition::regclass, suffix);
    made := made + 1;
  END LOOP;
  RETURN made;
END $$;
DO $$
DECLARE
  partition text;
BEGIN
  FOR partition IN SELECT name FROM data_partitions WHERE parent = 'results' LOOP
    EXECUTE format('GRANT INSERT ON %I TO lowtide_worker', partition);
    EXECUTE format('ALTER TABLE %I NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY', partition);
  END LOOP;
END $$;
"""
OPEN_WORK = """
CREATE OR REPLACE FUNCTION open_work() RETURNS TABLE (
  fleet text, deadline timestamptz, model text, lines bigint, ended bigint, retried bigint,
  running_seconds double precision, sharer bigint, weight integer, max_running integer,
  at_risk boolean, pinned boolean, last_at timestamptz, held boolean, priority smallint,
  barrier timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT p.fleet, b.deadline, p.model, greatest(0, p.lines - t.ended),
    t.ended, t.retried, t.running_seconds, dense_rank() OVER (ORDER BY b.tenant_id), n.weight,
    n.max_running_lines, b.at_risk, b.start_pool = 'dedicated', (
      SELECT max(q.last_at) FROM unnest(ARRAY['spot', 'dedicated']) AS l (pool)
      CROSS JOIN LATERAL (
        SELECT available_at AS last_at FROM queued_runs
        WHERE fleet = p.fleet AND pool = l.pool AND batch_id = b.id
        ORDER BY available_at DESC, line DESC LIMIT 1) q),
    EXISTS (SELECT FROM exhausted_quotas WHERE tenant_id = b.tenant_id AND until > now()),
    b.priority, b.barrier
  FROM batches b
  JOIN tenants n ON n.id = b.tenant_id
  CROSS JOIN LATERAL (SELECT * FROM batch_parts WHERE batch_id = b.id OFFSET 0) p
  CROSS JOIN LATERAL (
    SELECT coalesce(sum(completed + failed), 0) AS ended, coalesce(sum(retried), 0) AS retried,
      coalesce(sum(running_seconds), 0) AS running_seconds
    FROM tallies WHERE batch_id = b.id AND fleet = p.fleet) t
  WHERE b.status IN ('validating', 'in_progress') AND b.drained_at IS NULL AND NOT b.expiring
$$;
"""


def upgrade() -> None:
    """Apply."""
    for statements in (
        FUNCTIONS,
        RUNS,
        CONVERT,
        REQUESTS_OF_RUNS,
        RUN_REQUEST_STATES,
        RUN_BATCH_STATES,
        GRANTS,
        WAITING,
        OPEN_WORK,
        RESULTS,
        SEGMENTS,
    ):
        op.execute(statements)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

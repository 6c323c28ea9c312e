"""Limits of a tenant, what its requests have used of them, and what its lines cost."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

LIMITS = """
-- NULL is unlimited.
ALTER TABLE tenants
  ADD max_requests_per_minute integer CHECK (max_requests_per_minute > 0),
  ADD max_active_batches integer CHECK (max_active_batches > 0),
  ADD max_queued_lines integer CHECK (max_queued_lines > 0),
  ADD max_running integer CHECK (max_running > 0);

-- One row a tenant with a rate limit: how much of a minute's requests was used at that time.
-- Unlogged, so that counting a request waits for no disk; a crash forgives a minute at most.
CREATE UNLOGGED TABLE request_rates (
  tenant_id uuid PRIMARY KEY,
  used double precision NOT NULL,
  at timestamptz NOT NULL
) WITH (fillfactor = 50);
GRANT SELECT ON request_rates TO lowtide_operator;
ALTER TABLE request_rates ENABLE ROW LEVEL SECURITY;
ALTER TABLE request_rates FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON request_rates TO lowtide_api
  USING (tenant_id = nullif(current_setting('lowtide.tenant', true), '')::uuid);
CREATE POLICY every_tenant ON request_rates
  TO lowtide_worker, lowtide_operator, lowtide_autoscaler USING (true);
CREATE POLICY owner ON request_rates TO CURRENT_USER USING (true);
"""

FUNCTIONS = """
-- A leaky bucket as a meter (Turner 1986; equal to ITU-T I.371's GCRA): what was used leaks away at
-- the rate of the limit, and a request that fits adds one. The clock is read under the row's lock, so
-- that requests of many processes are counted one after the other.
CREATE FUNCTION spend_request(
  tenant uuid, per_minute integer, OUT used double precision, OUT accepted boolean)
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  since timestamptz;
  instant timestamptz;
BEGIN
  LOOP
    SELECT r.used, r.at INTO used, since FROM request_rates r WHERE r.tenant_id = tenant FOR UPDATE;
    EXIT WHEN FOUND;
    INSERT INTO request_rates VALUES (tenant, 0, clock_timestamp()) ON CONFLICT DO NOTHING;
  END LOOP;
  instant := greatest(since, clock_timestamp());
  used := greatest(0, used - per_minute * extract(epoch FROM instant - since)::double precision / 60);
  accepted := used + 1 <= per_minute;
  IF accepted THEN
    used := used + 1;
    UPDATE request_rates r SET used = spend_request.used, at = instant WHERE r.tenant_id = tenant;
  END IF;
END $$;

-- Who calls, and whether the tenant's rate limit lets the call pass, in one round trip. Without a
-- limit nothing is spent: the function is strict.
DROP FUNCTION authenticate(bytea), tenant_named(text);
CREATE FUNCTION authenticate(key_hash bytea) RETURNS TABLE (
  tenant_id uuid, key_name text, per_minute integer, used double precision, accepted boolean)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT k.tenant_id, k.name, t.max_requests_per_minute, s.used, coalesce(s.accepted, true)
  FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
  CROSS JOIN LATERAL spend_request(t.id, t.max_requests_per_minute) s
  WHERE k.hash = key_hash AND k.revoked_at IS NULL
$$;
CREATE FUNCTION authenticate_anonymous(tenant_name text) RETURNS TABLE (
  tenant_id uuid, per_minute integer, used double precision, accepted boolean)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.id, t.max_requests_per_minute, s.used, coalesce(s.accepted, true)
  FROM tenants t CROSS JOIN LATERAL spend_request(t.id, t.max_requests_per_minute) s
  WHERE t.name = tenant_name
$$;

-- The limits of the tenant that a transaction acts for, if it has any; two creations of one tenant
-- then wait for each other here, and nobody else waits.
CREATE FUNCTION lock_batch_limits() RETURNS TABLE (active_batches integer, queued_lines integer)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.max_active_batches, t.max_queued_lines FROM tenants t
  WHERE t.id = nullif(current_setting('lowtide.tenant', true), '')::uuid
    AND (t.max_active_batches IS NOT NULL OR t.max_queued_lines IS NOT NULL)
  FOR NO KEY UPDATE
$$;

REVOKE ALL ON FUNCTION spend_request(uuid, integer), authenticate(bytea),
  authenticate_anonymous(text), lock_batch_limits() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION authenticate(bytea), authenticate_anonymous(text), lock_batch_limits()
  TO lowtide_api;

CREATE INDEX batches_active_of_tenant ON batches (tenant_id)
  WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
"""

COST = """
-- The lines' part of their workers' time, of accepted results only; the worker tells it.
ALTER TABLE tallies ADD replica_seconds double precision NOT NULL DEFAULT 0;

DROP VIEW batch_states;
CREATE VIEW batch_states WITH (security_invoker = true) AS
SELECT b.*,
  t.tallied_completed, t.tallied_failed, t.interrupted, t.retried, t.escalated,
  t.input_tokens, t.output_tokens, t.on_dedicated, t.spot_seconds, t.dedicated_seconds
FROM batches b
CROSS JOIN LATERAL (
  SELECT coalesce(sum(completed), 0)::integer AS tallied_completed,
    coalesce(sum(failed), 0)::integer AS tallied_failed,
    coalesce(sum(interrupted), 0)::integer AS interrupted,
    coalesce(sum(retried), 0)::integer AS retried,
    coalesce(sum(escalated), 0)::integer AS escalated,
    coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
    coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
    coalesce(sum(completed + failed) FILTER (WHERE pool = 'dedicated'), 0)::integer AS on_dedicated,
    coalesce(sum(replica_seconds) FILTER (WHERE pool = 'spot'), 0) AS spot_seconds,
    coalesce(sum(replica_seconds) FILTER (WHERE pool = 'dedicated'), 0) AS dedicated_seconds
  FROM tallies WHERE batch_id = b.id
) t;
GRANT SELECT ON batch_states TO lowtide_api, lowtide_worker, lowtide_operator;
"""

OUTLOOK = """
-- The deadline of a batch depends on the work of all tenants; these tell how much there is, and not
-- whose. The owner runs them, and FORCE binds it too.
CREATE POLICY owner ON batches FOR SELECT TO CURRENT_USER USING (true);
CREATE POLICY owner ON tallies FOR SELECT TO CURRENT_USER USING (true);
CREATE POLICY owner ON files FOR SELECT TO CURRENT_USER USING (true);

CREATE FUNCTION open_work() RETURNS TABLE (
  deadline timestamptz, model text, lines bigint, ended bigint, retried bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT b.deadline, b.model, sum(greatest(0,
      CASE WHEN b.status = 'validating'
        THEN coalesce((SELECT f.lines FROM files f WHERE f.id = b.input_file_id), 0)
        ELSE b.total - t.ended END)),
    sum(t.ended)::bigint, sum(t.retried)::bigint
  FROM batches b
  CROSS JOIN LATERAL (
    SELECT coalesce(sum(completed + failed), 0) AS ended, coalesce(sum(retried), 0) AS retried
    FROM tallies WHERE batch_id = b.id) t
  WHERE b.status IN ('validating', 'in_progress') AND b.drained_at IS NULL AND NOT b.expiring
  GROUP BY b.deadline, b.model
$$;
CREATE FUNCTION living_workers() RETURNS TABLE (pool text, replicas bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT w.pool, count(*) FROM workers w WHERE w.expires_at > now() GROUP BY w.pool
$$;
REVOKE ALL ON FUNCTION open_work(), living_workers() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION open_work(), living_workers() TO lowtide_api, lowtide_operator;
"""


def upgrade() -> None:
    """Apply."""
    for script in (LIMITS, FUNCTIONS, COST, OUTLOOK):
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

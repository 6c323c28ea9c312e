"""Quotas of tenants by tokens and by cost, and the usage that they are measured by."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.isolation import isolated

revision = "0009"
down_revision = "0008"

LIMITS = """
ALTER TABLE tenants
  ADD COLUMN max_enqueued_tokens bigint CHECK (max_enqueued_tokens > 0),
  ADD COLUMN max_tokens_per_day bigint CHECK (max_tokens_per_day > 0),
  ADD COLUMN max_spend_per_month bigint CHECK (max_spend_per_month > 0);
GRANT SELECT (max_enqueued_tokens, max_tokens_per_day, max_spend_per_month) ON tenants TO lowtide_api;
-- An estimate of the input's tokens at creation: it outlives the file, which may be deleted meanwhile.
ALTER TABLE batches ADD COLUMN enqueued_tokens bigint NOT NULL DEFAULT 0;

DROP FUNCTION lock_batch_limits();
-- The limits of the tenant that a transaction acts for, if it has any; they also apply to batches
-- that operators create. Two transactions that create batches of one tenant wait for each other
-- here; other tenants do not wait.
CREATE FUNCTION lock_batch_limits() RETURNS TABLE (active_batches integer, queued_lines integer,
  enqueued_tokens bigint, tokens_per_day bigint, spend_per_month bigint)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.max_active_batches, t.max_queued_lines, t.max_enqueued_tokens, t.max_tokens_per_day,
    t.max_spend_per_month
  FROM tenants t
  WHERE t.id = nullif(current_setting('lowtide.tenant', true), '')::uuid
    AND coalesce(t.max_active_batches, t.max_queued_lines, t.max_enqueued_tokens,
      t.max_tokens_per_day, t.max_spend_per_month) IS NOT NULL
  FOR NO KEY UPDATE
$$;
REVOKE ALL ON FUNCTION lock_batch_limits() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lock_batch_limits() TO lowtide_api, lowtide_worker, lowtide_operator;
"""

USAGE = f"""
-- What accepted results used, by day in UTC: written by the statement that settles them, and kept
-- when their batches are gone. Settling workers share a few rows, so that they rarely wait.
CREATE TABLE usage_days (
  tenant_id uuid NOT NULL,
  day date NOT NULL,
  currency text NOT NULL,
  pool text NOT NULL,
  shard smallint NOT NULL,
  requests bigint NOT NULL,
  input_tokens bigint NOT NULL,
  output_tokens bigint NOT NULL,
  cost double precision NOT NULL,
  dedicated_cost double precision NOT NULL,
  PRIMARY KEY (tenant_id, day, currency, pool, shard)
) WITH (fillfactor = 70);
CREATE INDEX usage_days_shared ON usage_days (day) WHERE shard > 0;
{isolated("usage_days")}
GRANT SELECT ON usage_days TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_days TO lowtide_worker;

-- Today's tokens, and this month's cost in the currency with the highest; both in UTC.
CREATE FUNCTION quota_use(tenant uuid) RETURNS TABLE (tokens bigint, spend double precision)
LANGUAGE sql STABLE AS $$
  SELECT
    (SELECT coalesce(sum(input_tokens + output_tokens), 0)::bigint FROM usage_days
      WHERE tenant_id = tenant AND day = (now() AT TIME ZONE 'UTC')::date),
    (SELECT coalesce(max(cost), 0) FROM (
      SELECT sum(cost) AS cost FROM usage_days
      WHERE tenant_id = tenant AND day >= date_trunc('month', now() AT TIME ZONE 'UTC')::date
      GROUP BY currency) c)
$$;
-- The quotas of a tenant that are used up, each until its period ends.
CREATE FUNCTION used_up_quotas(tenant uuid) RETURNS TABLE (quota text, until timestamptz)
LANGUAGE sql STABLE AS $$
  SELECT q.quota, q.until FROM tenants t CROSS JOIN LATERAL quota_use(t.id) u
  CROSS JOIN LATERAL (VALUES
    ('tokens_per_day', t.max_tokens_per_day, u.tokens::double precision,
      (date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC'),
    ('spend_per_month', t.max_spend_per_month, u.spend,
      (date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC')
  ) q (quota, most, used, until)
  WHERE t.id = tenant AND q.used >= q.most
$$;

-- The scheduler's note of these quotas: plans, forecasts and the autoscaler leave their tenants'
-- requests out. What a claim may take does not depend on it.
CREATE TABLE exhausted_quotas (
  tenant_id uuid NOT NULL,
  quota text NOT NULL,
  until timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, quota)
);
{isolated("exhausted_quotas")}
-- The owner runs open_work() and waiting_requests(), and FORCE binds the owner too.
CREATE POLICY owner ON exhausted_quotas FOR SELECT TO CURRENT_USER USING (true);
GRANT SELECT ON exhausted_quotas TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON exhausted_quotas TO lowtide_worker;

REVOKE ALL ON FUNCTION quota_use(uuid), used_up_quotas(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION quota_use(uuid), used_up_quotas(uuid)
  TO lowtide_api, lowtide_worker, lowtide_operator;
"""  # noqa: S608

WAITING = """
-- Queued requests of a pool, counted up to `most`; none while it is paused. Those of a tenant whose
-- quota is used up do not count: a worker for them would be idle.
CREATE FUNCTION waiting_requests(of_fleet text, of_pool text, most integer) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT count(*) FROM (
    SELECT FROM batches b CROSS JOIN LATERAL (
      SELECT FROM queue
      WHERE fleet = of_fleet AND pool = of_pool AND batch_id = b.id
      ORDER BY available_at LIMIT most) q
    WHERE b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
      AND NOT EXISTS (
        SELECT FROM exhausted_quotas WHERE tenant_id = b.tenant_id AND until > now())
      AND NOT EXISTS (SELECT FROM paused_pools WHERE fleet = of_fleet AND pool = of_pool)
    LIMIT most) counted
$$;
REVOKE ALL ON FUNCTION waiting_requests(text, text, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION waiting_requests(text, text, integer) TO lowtide_autoscaler;
"""

OPEN_WORK = """
DROP FUNCTION open_work();
-- The end of a batch depends on the work of all tenants: this returns how much there is, but not
-- whose. A tenant is a number that is good for one call, with its weight and its limit; with `held`,
-- a quota of it is used up.
CREATE FUNCTION open_work() RETURNS TABLE (
  fleet text, deadline timestamptz, model text, lines bigint, ended bigint, retried bigint,
  running_seconds double precision, sharer bigint, weight integer, max_running integer,
  at_risk boolean, pinned boolean, last_at timestamptz, held boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT p.fleet, b.deadline, p.model, greatest(0, p.lines - t.ended),
    t.ended, t.retried, t.running_seconds, dense_rank() OVER (ORDER BY b.tenant_id), n.weight,
    n.max_running_lines, b.at_risk, b.start_pool = 'dedicated', (
      SELECT max(q.last_at) FROM unnest(ARRAY['spot', 'dedicated']) AS l (pool)
      CROSS JOIN LATERAL (
        SELECT available_at AS last_at FROM queue
        WHERE fleet = p.fleet AND pool = l.pool AND batch_id = b.id
        ORDER BY available_at DESC, line DESC LIMIT 1) q),
    EXISTS (SELECT FROM exhausted_quotas WHERE tenant_id = b.tenant_id AND until > now())
  FROM batches b
  JOIN tenants n ON n.id = b.tenant_id
  CROSS JOIN LATERAL (SELECT * FROM batch_parts WHERE batch_id = b.id OFFSET 0) p
  CROSS JOIN LATERAL (
    SELECT coalesce(sum(completed + failed), 0) AS ended, coalesce(sum(retried), 0) AS retried,
      coalesce(sum(running_seconds), 0) AS running_seconds
    FROM tallies WHERE batch_id = b.id AND fleet = p.fleet) t
  WHERE b.status IN ('validating', 'in_progress') AND b.drained_at IS NULL AND NOT b.expiring
$$;
REVOKE ALL ON FUNCTION open_work() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION open_work() TO lowtide_api, lowtide_worker, lowtide_operator;
"""


def upgrade() -> None:
    """Apply."""
    for statements in (LIMITS, USAGE, WAITING, OPEN_WORK):
        op.execute(statements)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

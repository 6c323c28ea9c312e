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

-- One row a tenant with a rate limit: when its allowance will be whole again. Unlogged, so that
-- counting a request waits for no disk; a crash empties it, which forgives a minute at most.
CREATE UNLOGGED TABLE request_rates (
  tenant_id uuid PRIMARY KEY,
  whole_at timestamptz NOT NULL
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

COST = """
-- A line's share of a replica's time, of accepted results only; filled by the worker.
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


def upgrade() -> None:
    """Apply."""
    for script in (LIMITS, COST):
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

"""Prices of each part of a batch, and costs at them."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.views import GRANTS

revision = "0005"
down_revision = "0004"

PRICES = """
-- Prices are of a replica hour. A part without its own has those of its batch, as all had before.
ALTER TABLE batch_fleets
  ADD COLUMN spot_price double precision,
  ADD COLUMN dedicated_price double precision;
-- The only place that derives costs: `cost` in the pool that ran the requests, `dedicated_cost` of
-- the same time on dedicated, both in the currency of the batch. It takes the columns of the batch,
-- which every caller has read, and is inlined. Only a batch of several fleets has parts.
CREATE FUNCTION tally_costs(
  batch uuid, only_fleet text, price_of_spot double precision, price_of_dedicated double precision)
RETURNS TABLE (
  pool text, completed integer, failed integer, dead_lettered integer, interrupted integer,
  retried integer, escalated integer, input_tokens bigint, output_tokens bigint,
  cached_tokens bigint, reasoning_tokens bigint, replica_seconds double precision,
  running_seconds double precision, cost double precision, dedicated_cost double precision)
LANGUAGE sql STABLE AS $$
  SELECT t.pool, t.completed, t.failed, t.dead_lettered, t.interrupted, t.retried, t.escalated,
    t.input_tokens, t.output_tokens, t.cached_tokens, t.reasoning_tokens, t.replica_seconds,
    t.running_seconds,
    t.replica_seconds / 3600 * CASE t.pool WHEN 'spot' THEN coalesce(p.spot_price, price_of_spot)
      ELSE coalesce(p.dedicated_price, price_of_dedicated) END,
    t.replica_seconds / 3600 * coalesce(p.dedicated_price, price_of_dedicated)
  FROM tallies t
  LEFT JOIN batch_fleets p
    ON only_fleet IS NULL AND p.batch_id = t.batch_id AND p.fleet = t.fleet
  WHERE t.batch_id = batch
$$;
REVOKE ALL ON FUNCTION tally_costs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tally_costs TO lowtide_api, lowtide_worker, lowtide_operator;
"""
BATCH_STATES = """
DROP VIEW batch_states;
-- Counts come from the per-worker tallies, so that settling a request locks no shared row. `b.*` is
-- fixed when the view is created: a migration that adds a column to batches creates it again.
-- Processes of the previous release read spot_seconds and dedicated_seconds.
CREATE VIEW batch_states WITH (security_invoker = true) AS
SELECT b.*, n.batch_retention, c.running,
  t.tallied_completed, t.tallied_failed, t.dead_lettered, t.interrupted, t.retried, t.escalated,
  t.input_tokens, t.output_tokens, t.cached_tokens, t.reasoning_tokens, t.on_dedicated,
  t.spot_seconds, t.dedicated_seconds, t.running_seconds,
  t.spot_cost, t.dedicated_cost, t.all_dedicated_cost
FROM batches b
JOIN LATERAL (SELECT batch_retention FROM tenants WHERE id = b.tenant_id OFFSET 0) n ON true
CROSS JOIN LATERAL (
  SELECT coalesce(sum(completed), 0)::integer AS tallied_completed,
    coalesce(sum(failed), 0)::integer AS tallied_failed,
    coalesce(sum(dead_lettered), 0)::integer AS dead_lettered,
    coalesce(sum(interrupted), 0)::integer AS interrupted,
    coalesce(sum(retried), 0)::integer AS retried,
    coalesce(sum(escalated), 0)::integer AS escalated,
    coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
    coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
    coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
    coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
    coalesce(sum(completed + failed) FILTER (WHERE pool = 'dedicated'), 0)::integer AS on_dedicated,
    coalesce(sum(replica_seconds) FILTER (WHERE pool = 'spot'), 0) AS spot_seconds,
    coalesce(sum(replica_seconds) FILTER (WHERE pool = 'dedicated'), 0) AS dedicated_seconds,
    coalesce(sum(running_seconds), 0) AS running_seconds,
    coalesce(sum(cost) FILTER (WHERE pool = 'spot'), 0) AS spot_cost,
    coalesce(sum(cost) FILTER (WHERE pool = 'dedicated'), 0) AS dedicated_cost,
    coalesce(sum(dedicated_cost), 0) AS all_dedicated_cost
  FROM tally_costs(b.id, b.fleet, b.spot_price, b.dedicated_price)
) t
CROSS JOIN LATERAL (
  SELECT CASE WHEN b.drained_at IS NULL AND b.status IN ('in_progress', 'cancelling')
    THEN (SELECT count(*) FROM claims WHERE batch_id = b.id)::integer ELSE 0 END AS running) c;
"""


def upgrade() -> None:
    """Apply."""
    for statements in (PRICES, BATCH_STATES, GRANTS):
        op.execute(statements)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

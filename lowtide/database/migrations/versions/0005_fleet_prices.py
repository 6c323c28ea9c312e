"""Prices of each part of a batch, and costs at them."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.views import COSTED_BATCH_STATES, GRANTS

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


def upgrade() -> None:
    """Apply."""
    for statements in (PRICES, "DROP VIEW batch_states", COSTED_BATCH_STATES, GRANTS):
        op.execute(statements)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

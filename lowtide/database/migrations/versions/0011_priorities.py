"""Priorities of batches, and the barriers where they stop counting."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.views import COSTED_BATCH_STATES, GRANTS

revision = "0011"
down_revision = "0010"

PRIORITIES = """
-- `barrier` is the first tight deadline from the batch's own on, as of the last tick: what is due by
-- it comes before what is due later, whatever its priority. It is NULL without one, and for tenants
-- without priorities, whose order on spot is that by deadline.
ALTER TABLE batches
  ADD COLUMN priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -10 AND 10),
  ADD COLUMN barrier timestamptz;
CREATE INDEX batches_in_order ON batches (tenant_id, barrier, priority DESC, deadline)
  WHERE status = 'in_progress' AND drained_at IS NULL AND NOT expiring;
"""
OPEN_WORK = """
DROP FUNCTION open_work();
-- The end of a batch depends on the work of all tenants: this function returns how much there is, but
-- not whose. A tenant is a number that is good for one call, with its weight and its limit; with `held`,
-- a quota of it is used up.
CREATE FUNCTION open_work() RETURNS TABLE (
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
        SELECT available_at AS last_at FROM queue
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
REVOKE ALL ON FUNCTION open_work() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION open_work() TO lowtide_api, lowtide_worker, lowtide_operator;
"""


def upgrade() -> None:
    """Apply."""
    for statements in (
        PRIORITIES,
        OPEN_WORK,
        "DROP VIEW batch_states",
        COSTED_BATCH_STATES,
        GRANTS,
    ):
        op.execute(statements)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

"""Cached and reasoning tokens of a batch; which body an idempotency key first came with."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0016"

# What was counted by workers that are not replaced yet has no details.
USAGE = """
ALTER TABLE tallies
  ADD cached_tokens bigint NOT NULL DEFAULT 0,
  ADD reasoning_tokens bigint NOT NULL DEFAULT 0;
"""

# Keys from before have no digest, and fit any body.
KEYS = """
ALTER TABLE batches ADD idempotency_digest bytea;
ALTER TABLE dead_letters ADD requeue_digest bytea;
GRANT UPDATE (requeue_digest) ON dead_letters TO lowtide_api, lowtide_operator;
"""

# `b.*` is what it was when the view was made.
VIEW = """
DROP VIEW batch_states;
CREATE VIEW batch_states WITH (security_invoker = true) AS
SELECT b.*,
  t.tallied_completed, t.tallied_failed, t.interrupted, t.retried, t.escalated,
  t.input_tokens, t.output_tokens, t.cached_tokens, t.reasoning_tokens, t.on_dedicated,
  t.spot_seconds, t.dedicated_seconds
FROM batches b
CROSS JOIN LATERAL (
  SELECT coalesce(sum(completed), 0)::integer AS tallied_completed,
    coalesce(sum(failed), 0)::integer AS tallied_failed,
    coalesce(sum(interrupted), 0)::integer AS interrupted,
    coalesce(sum(retried), 0)::integer AS retried,
    coalesce(sum(escalated), 0)::integer AS escalated,
    coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
    coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
    coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
    coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
    coalesce(sum(completed + failed) FILTER (WHERE pool = 'dedicated'), 0)::integer AS on_dedicated,
    coalesce(sum(replica_seconds) FILTER (WHERE pool = 'spot'), 0) AS spot_seconds,
    coalesce(sum(replica_seconds) FILTER (WHERE pool = 'dedicated'), 0) AS dedicated_seconds
  FROM tallies WHERE batch_id = b.id
) t;
GRANT SELECT ON batch_states TO lowtide_api, lowtide_worker, lowtide_operator;
"""


def upgrade() -> None:
    """Apply."""
    for script in (USAGE, KEYS, VIEW):
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

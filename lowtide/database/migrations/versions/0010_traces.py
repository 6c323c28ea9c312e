"""Files, batches and events keep the place in a trace that they come from (W3C Trace Context)."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"

CONTEXTS = """
ALTER TABLE files ADD traceparent text, ADD tracestate text;
ALTER TABLE batches ADD traceparent text, ADD tracestate text;
ALTER TABLE outbox ADD traceparent text, ADD tracestate text;
"""

# `b.*` is what it was when the view was made.
VIEW = """
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
    for script in (CONTEXTS, VIEW):
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

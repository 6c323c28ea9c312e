"""Views that a migration creates again when their tables change.

From 0005 on, `COSTED_BATCH_STATES` replaces `BATCH_STATES`; from 0012 on, those of runs replace both.
"""

from __future__ import annotations

_REQUEST_STATES = """
-- The only place that derives a request's status; API, portal and metrics all read it. OFFSET 0
-- keeps each join a lookup by key while the statistics do not include a new batch.
CREATE VIEW request_states WITH (security_invoker = true) AS
SELECT r.batch_id, r.line, r.tenant_id, r.custom_id, r.start, r.length,
  CASE
    WHEN f.succeeded THEN 'Completed'
    WHEN f.batch_id IS NOT NULL THEN 'Failed'
    WHEN c.batch_id IS NOT NULL THEN 'Running'
    WHEN q.batch_id IS NOT NULL THEN 'Queued'
    WHEN b.status IN ('cancelling', 'cancelled') THEN 'Cancelled'
    ELSE 'Expired'
  END AS status,
  coalesce(f.dead_lettered, false) AS dead_lettered,
  coalesce(f.pool, c.pool, q.pool) AS pool,
  coalesce(f.attempts, c.attempts, q.attempts, 0) AS attempts,
  coalesce(f.interruptions, c.interruptions, q.interruptions, 0) AS interruptions,
  coalesce(f.escalated, c.escalated, q.escalated, false) AS escalated,
  coalesce(c.queued_at, q.queued_at) AS queued_at,
  coalesce(f.started_at, c.claimed_at) AS started_at,
  f.finished_at, f.status_code, f.error_code, f.error_message
FROM requests r
JOIN LATERAL (SELECT status FROM batches WHERE id = r.batch_id OFFSET 0) b ON true
LEFT JOIN LATERAL (
  SELECT * FROM results WHERE batch_id = r.batch_id AND line = r.line OFFSET 0) f ON true
LEFT JOIN LATERAL (
  SELECT * FROM {claims} OFFSET 0) c ON true
LEFT JOIN LATERAL (
  SELECT * FROM {queue} OFFSET 0) q ON true;
"""
_OF_LINE = "WHERE batch_id = r.batch_id AND line = r.line"
REQUEST_STATES = _REQUEST_STATES.format(claims=f"claims {_OF_LINE}", queue=f"queue {_OF_LINE}")
# A run has at most RUN_LINES lines from its first one on, all in one block of as many. Backward, since
# of runs of one line the nearest is the one.
_IN_RUN = """WHERE batch_id = r.batch_id AND line BETWEEN r.line - 127 AND r.line AND lines @> r.line
  ORDER BY line DESC LIMIT 1"""
RUN_REQUEST_STATES = _REQUEST_STATES.format(
    claims=f"claimed_runs {_IN_RUN}", queue=f"queued_runs {_IN_RUN}"
)

BATCH_STATES = """
-- Counts come from the per-worker tallies, so that settling a request locks no shared row. `b.*` is
-- fixed when the view is created: a migration that adds a column to batches creates it again.
CREATE VIEW batch_states WITH (security_invoker = true) AS
SELECT b.*, n.batch_retention, c.running,
  t.tallied_completed, t.tallied_failed, t.dead_lettered, t.interrupted, t.retried, t.escalated,
  t.input_tokens, t.output_tokens, t.cached_tokens, t.reasoning_tokens, t.on_dedicated,
  t.spot_seconds, t.dedicated_seconds, t.running_seconds
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
    coalesce(sum(running_seconds), 0) AS running_seconds
  FROM tallies WHERE batch_id = b.id
) t
CROSS JOIN LATERAL (
  SELECT CASE WHEN b.drained_at IS NULL AND b.status IN ('in_progress', 'cancelling')
    THEN (SELECT count(*) FROM claims WHERE batch_id = b.id)::integer ELSE 0 END AS running) c;
"""

COSTED_BATCH_STATES = """
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

RUN_BATCH_STATES = COSTED_BATCH_STATES.replace(
    "count(*) FROM claims", "coalesce(sum(size), 0) FROM claimed_runs"
)

GRANTS = """
GRANT SELECT ON request_states, batch_states TO lowtide_api, lowtide_worker, lowtide_operator;
"""

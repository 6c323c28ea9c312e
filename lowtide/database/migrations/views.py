"""A view that a migration creates again unchanged when its tables change."""

from __future__ import annotations

REQUEST_STATES = """
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
  SELECT * FROM claims WHERE batch_id = r.batch_id AND line = r.line OFFSET 0) c ON true
LEFT JOIN LATERAL (
  SELECT * FROM queue WHERE batch_id = r.batch_id AND line = r.line OFFSET 0) q ON true;
"""

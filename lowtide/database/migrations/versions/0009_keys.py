"""Keys that are rotated and tell when they were used, the audit log to read, where lines start."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"

KEYS = """
-- The prefix is what people know a key by; keys of before have none.
ALTER TABLE api_keys
  ADD id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
  ADD prefix text,
  ADD expires_at timestamptz,
  ADD last_used_at timestamptz;
CREATE INDEX api_keys_newest ON api_keys (created_at DESC, id DESC);
CREATE INDEX api_keys_of_tenant ON api_keys (tenant_id, created_at DESC, id DESC);

-- When a key was used is noted once a minute, and by one of those who use it at the same moment:
-- nobody waits for that.
DROP FUNCTION authenticate(bytea);
CREATE FUNCTION authenticate(key_hash bytea) RETURNS TABLE (
  tenant_id uuid, key_id uuid, key_name text, per_minute integer, used double precision,
  accepted boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
  noted timestamptz;
BEGIN
  SELECT k.tenant_id, k.id, k.name, t.max_requests_per_minute, k.last_used_at
  INTO authenticate.tenant_id, authenticate.key_id, authenticate.key_name, authenticate.per_minute,
    noted
  FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
  WHERE k.hash = key_hash AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now());
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF noted IS NULL OR noted < now() - interval '1 minute' THEN
    UPDATE api_keys SET last_used_at = now() WHERE hash = (
      SELECT k.hash FROM api_keys k WHERE k.hash = key_hash FOR NO KEY UPDATE SKIP LOCKED);
  END IF;
  accepted := true;
  IF authenticate.per_minute IS NOT NULL THEN
    SELECT s.used, s.accepted INTO authenticate.used, authenticate.accepted
    FROM spend_request(authenticate.tenant_id, authenticate.per_minute) s;
  END IF;
  RETURN NEXT;
END $$;

-- Sessions of the portal end with the key they were opened with.
CREATE FUNCTION keys_in_use(ids uuid[]) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT id FROM api_keys
  WHERE id = ANY(ids) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
$$;
REVOKE ALL ON FUNCTION authenticate(bytea), keys_in_use(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION authenticate(bytea), keys_in_use(uuid[]) TO lowtide_api;
"""

AUDIT = """
CREATE INDEX audit_log_by_actor ON audit_log (actor, id DESC);
CREATE INDEX audit_log_by_action ON audit_log (action, id DESC);
CREATE INDEX audit_log_of_tenant ON audit_log (tenant_id, id DESC);
"""

BATCHES = """
CREATE INDEX batches_ended_of_tenant
  ON batches (tenant_id, (coalesce(completed_at, failed_at, expired_at, cancelled_at)))
  WHERE status IN ('completed', 'failed', 'expired', 'cancelled');

-- Lines that start on dedicated stay there: somebody chose it.
ALTER TABLE batches ADD start_pool text NOT NULL DEFAULT 'spot'
  CHECK (start_pool IN ('spot', 'dedicated'));
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
    for script in (KEYS, AUDIT, BATCHES):
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

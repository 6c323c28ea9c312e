"""Scopes of API keys."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

SCOPES = """
-- NULL stands for every scope: keys from before there were any have it.
ALTER TABLE api_keys ADD COLUMN scopes text[];
DROP FUNCTION authenticate(bytea);
CREATE FUNCTION authenticate(key_hash bytea) RETURNS TABLE (
  tenant_id uuid, key_id uuid, key_name text, per_minute integer, used double precision,
  accepted boolean, scopes text[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
  noted timestamptz;
BEGIN
  SELECT k.tenant_id, k.id, k.name, t.max_requests_per_minute, k.last_used_at, k.scopes
  INTO authenticate.tenant_id, authenticate.key_id, authenticate.key_name, authenticate.per_minute,
    noted, authenticate.scopes
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
REVOKE ALL ON FUNCTION authenticate(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION authenticate(bytea) TO lowtide_api;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(SCOPES)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

"""Entries of the audit log are events, too."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.isolation import isolated

revision = "0010"
down_revision = "0009"

AUDIT_EVENTS = f"""
-- The events of audit entries that were not accepted yet. Not in the outbox of batches, which a slow or
-- missing subscriber must not fill. Only the scheduler reads and removes them: who writes an entry
-- cannot take its event back. An action on the whole installation belongs to no tenant.
CREATE TABLE audit_outbox (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid,
  action text NOT NULL,
  data jsonb NOT NULL,
  attempts integer NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT now(),
  next_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_outbox_due ON audit_outbox (next_at);
CREATE INDEX audit_outbox_oldest ON audit_outbox (created_at);
{isolated("audit_outbox")}
GRANT INSERT ON audit_outbox TO lowtide_api, lowtide_operator;
GRANT SELECT, UPDATE, DELETE ON audit_outbox TO lowtide_worker;
GRANT SELECT (action, attempts, created_at) ON audit_outbox TO lowtide_operator;

-- In the transaction and with the rights of whoever writes the entry: no entry without its event, and
-- no event without its entry. A temporary table of the writer's does not stand in for this one. The
-- event's data is a line of `lowtide audit export`.
CREATE FUNCTION announce_audit_entry() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO audit_outbox (tenant_id, action, data)
  VALUES (NEW.tenant_id, NEW.action, jsonb_build_object(
    'id', NEW.id,
    'at', to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'tenant', (SELECT name FROM tenants WHERE id = NEW.tenant_id),
    'actor', NEW.actor, 'action', NEW.action, 'subject', NEW.subject));
  RETURN NULL;
END $$;
CREATE TRIGGER announce_audit_entry AFTER INSERT ON audit_log
  FOR EACH ROW EXECUTE FUNCTION announce_audit_entry();
"""  # noqa: S608


def upgrade() -> None:
    """Apply."""
    op.execute(AUDIT_EVENTS)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

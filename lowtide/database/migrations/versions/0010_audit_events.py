"""Entries of the audit log are events, too."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"

AUDIT_EVENTS = """
-- An action on the whole installation belongs to no tenant.
ALTER TABLE outbox ALTER COLUMN tenant_id DROP NOT NULL;

-- Audit events have senders of their own: those that wait for a slow subscriber delay no batch.
DROP INDEX outbox_due;
CREATE INDEX outbox_due ON outbox (next_at) WHERE type <> 'dev.lowtide.audit';
CREATE INDEX outbox_audit_due ON outbox (next_at) WHERE type = 'dev.lowtide.audit';

-- Only the scheduler reads and removes them: who writes an entry cannot take its event back.
CREATE POLICY hidden_audit ON outbox AS RESTRICTIVE FOR SELECT TO lowtide_api
  USING (type <> 'dev.lowtide.audit');
CREATE POLICY kept_audit ON outbox AS RESTRICTIVE FOR DELETE TO lowtide_api, lowtide_operator
  USING (type <> 'dev.lowtide.audit');

-- In the transaction and with the rights of whoever writes the entry: no entry without its event, and
-- no event without its entry. A temporary table of the writer's does not stand in for the outbox. The
-- event's data is a line of `lowtide audit export`.
CREATE FUNCTION announce_audit_entry() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO outbox (id, tenant_id, type, subject, data, next_at)
  VALUES (uuidv7(), NEW.tenant_id, 'dev.lowtide.audit', NEW.action, jsonb_build_object(
    'id', NEW.id,
    'at', to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'tenant', (SELECT name FROM tenants WHERE id = NEW.tenant_id),
    'actor', NEW.actor, 'action', NEW.action, 'subject', NEW.subject), now());
  RETURN NULL;
END $$;
CREATE TRIGGER announce_audit_entry AFTER INSERT ON audit_log
  FOR EACH ROW EXECUTE FUNCTION announce_audit_entry();
"""


def upgrade() -> None:
    """Apply."""
    op.execute(AUDIT_EVENTS)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

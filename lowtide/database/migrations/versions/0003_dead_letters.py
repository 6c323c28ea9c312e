"""Dead letters that can be listed by state and cause, requeued and discarded."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

TABLE = """
ALTER TABLE dead_letters
  ADD COLUMN state text NOT NULL DEFAULT 'open'
    CHECK (state IN ('open', 'requeued', 'discarded')),
  ADD COLUMN requeued_as uuid,
  ADD COLUMN ended_at timestamptz,
  ADD COLUMN actor text,
  ADD COLUMN requeue_key text,
  ADD CONSTRAINT dead_letters_ended CHECK (
    (state = 'open') = (ended_at IS NULL) AND (state = 'requeued') = (requeued_as IS NOT NULL));

DROP INDEX dead_letters_newest;
CREATE INDEX dead_letters_newest
  ON dead_letters (tenant_id, at DESC, batch_id DESC, line DESC);
CREATE INDEX dead_letters_by_state
  ON dead_letters (tenant_id, state, at DESC, batch_id DESC, line DESC);
CREATE INDEX dead_letters_by_code
  ON dead_letters (tenant_id, error_code, at DESC, batch_id DESC, line DESC);
CREATE INDEX dead_letters_of_batch ON dead_letters (batch_id, at DESC, line DESC);
CREATE INDEX dead_letters_in_order ON dead_letters (tenant_id, batch_id, line);
CREATE INDEX dead_letters_by_requeue_key ON dead_letters (tenant_id, requeue_key)
  WHERE requeue_key IS NOT NULL;
"""

# An answer that is an HTTP error has no code of its own; letters are looked for by one. The result
# is stored by the same statement as the letter, so that only a trigger after it can look there.
CODES = """
CREATE FUNCTION name_http_error() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  UPDATE dead_letters d SET error_code = 'http_' || f.status_code
  FROM results f
  WHERE d.batch_id = NEW.batch_id AND d.line = NEW.line
    AND f.batch_id = NEW.batch_id AND f.line = NEW.line AND f.status_code IS NOT NULL;
  RETURN NULL;
END $$;
CREATE TRIGGER name_http_error AFTER INSERT ON dead_letters
  FOR EACH ROW WHEN (NEW.error_code IS NULL) EXECUTE FUNCTION name_http_error();

-- The owner sees no rows while row-level security is forced on it, too.
ALTER TABLE dead_letters NO FORCE ROW LEVEL SECURITY;
ALTER TABLE results NO FORCE ROW LEVEL SECURITY;
UPDATE dead_letters d SET error_code = 'http_' || f.status_code
FROM results f
WHERE d.error_code IS NULL AND f.batch_id = d.batch_id AND f.line = d.line
  AND f.status_code IS NOT NULL;
ALTER TABLE dead_letters FORCE ROW LEVEL SECURITY;
ALTER TABLE results FORCE ROW LEVEL SECURITY;
"""

GRANTS = """
GRANT UPDATE (state, requeued_as, ended_at, actor, requeue_key) ON dead_letters
  TO lowtide_api, lowtide_operator;
GRANT INSERT, DELETE ON stray_objects TO lowtide_operator;
"""


def upgrade() -> None:
    """Apply."""
    for script in (TABLE, CODES, GRANTS):
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

"""Portal sessions that were signed out before their time: they stay out after a restart."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0012"

SIGNED_OUT = """
CREATE TABLE signed_out (
  session text PRIMARY KEY CHECK (length(session) <= 64),
  until timestamptz NOT NULL
);
CREATE INDEX signed_out_until ON signed_out (until);

ALTER TABLE signed_out ENABLE ROW LEVEL SECURITY;
ALTER TABLE signed_out FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT ON signed_out TO lowtide_operator;
CREATE POLICY portal_reads ON signed_out FOR SELECT TO lowtide_operator USING (true);
CREATE POLICY portal_adds ON signed_out FOR INSERT TO lowtide_operator WITH CHECK (true);
"""

# The scheduler drops what has ended anyway, and can open no session again.
ENDED = """
GRANT SELECT (until), DELETE ON signed_out TO lowtide_worker;
CREATE POLICY ended_reads ON signed_out FOR SELECT TO lowtide_worker USING (until < now());
CREATE POLICY ended_goes ON signed_out FOR DELETE TO lowtide_worker USING (until < now());
"""


def upgrade() -> None:
    """Apply."""
    for script in (SIGNED_OUT, ENDED):
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

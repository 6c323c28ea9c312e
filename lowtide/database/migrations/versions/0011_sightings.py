"""When each part was last seen at work; the schema's revision for all to read; the old audit log to go."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"

# One row a part, updated at most every few seconds: about twenty rows, kept in place on their page.
SIGHTINGS = """
CREATE TABLE sightings (
  sight text NOT NULL,
  name text NOT NULL,
  succeeded_at timestamptz,
  failed_at timestamptz,
  problem text NOT NULL DEFAULT '',
  PRIMARY KEY (sight, name)
) WITH (fillfactor = 25);

GRANT SELECT, INSERT, UPDATE ON sightings TO lowtide_api, lowtide_worker, lowtide_operator;
"""

# A function is not ready before it sees the schema that it needs.
REVISION = "GRANT SELECT ON alembic_version TO lowtide_api, lowtide_worker"

# The scheduler may drop what is old, and nothing else: not even it can hide what was done this month.
RETENTION = """
GRANT SELECT (id, at), DELETE ON audit_log TO lowtide_worker;
CREATE POLICY only_old ON audit_log AS RESTRICTIVE FOR DELETE TO lowtide_worker
  USING (at < now() - interval '30 days');
"""


def upgrade() -> None:
    """Apply."""
    for script in (SIGHTINGS, REVISION, RETENTION):
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

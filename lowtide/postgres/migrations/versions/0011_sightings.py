"""When each function, event type and engine was last seen at work."""

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


def upgrade() -> None:
    """Apply."""
    op.execute(SIGHTINGS)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

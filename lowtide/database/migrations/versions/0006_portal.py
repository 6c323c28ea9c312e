"""What the portal's lists and pages walk: active batches first, failed lines, notes of a batch."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

INDEXES = """
-- The expression is that of lowtide.postgres.batch_lists: the planner matches it as written.
CREATE INDEX batches_active_first ON batches ((CASE WHEN status IN (
  'validating', 'in_progress', 'finalizing', 'cancelling') THEN 1 ELSE 0 END) DESC, id DESC);
CREATE INDEX results_failed ON results (batch_id, line) WHERE NOT succeeded;
CREATE INDEX request_events_notes ON request_events (batch_id, id DESC)
  WHERE kind IN ('interrupted', 'escalated');
"""


def upgrade() -> None:
    """Apply."""
    op.execute(INDEXES)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

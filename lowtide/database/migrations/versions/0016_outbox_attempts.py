"""When each event of the outbox is tried next; wake-ups of workers are no events any more."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0013"

ATTEMPTS = """
ALTER TABLE outbox ADD attempts smallint NOT NULL DEFAULT 0,
  ADD next_at timestamptz NOT NULL DEFAULT now() + interval '5 seconds';
CREATE INDEX outbox_due ON outbox (next_at);
"""

# Workers look by themselves, and a pool without one failed every such event for ever.
WAKE_UPS = "DELETE FROM outbox WHERE type = 'dev.lowtide.requests.queued'"


def upgrade() -> None:
    """Apply."""
    for script in (ATTEMPTS, WAKE_UPS):
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

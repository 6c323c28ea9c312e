"""What a claim walks: lines of one batch and pool in the order they were queued."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

CHANGES = """
SELECT 1;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

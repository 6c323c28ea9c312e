"""Dead letters that can be requeued and discarded."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

CHANGES = """
SELECT 1;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

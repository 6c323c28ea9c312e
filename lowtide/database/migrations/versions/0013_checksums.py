"""A checksum of each request's bytes."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0011"

# What was split before, or is split by a function that is not replaced yet, has none.
CHECKSUM = "ALTER TABLE requests ADD checksum integer"


def upgrade() -> None:
    """Apply."""
    op.execute(CHECKSUM)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

"""Nothing yet."""

from __future__ import annotations

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Apply."""


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

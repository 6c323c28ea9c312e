"""Nothing yet."""

from __future__ import annotations

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Apply."""


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

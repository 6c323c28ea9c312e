"""Operators create batches for tenants: from an upload, or by requeueing dead letters."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

# The limits of the tenant hold for them, too.
GRANTS = "GRANT EXECUTE ON FUNCTION lock_batch_limits() TO lowtide_operator"


def upgrade() -> None:
    """Apply."""
    op.execute(GRANTS)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

"""What a claim walks: the lines of one batch in one pool, in the order they became available."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

CHANGES = """
DROP INDEX queue_claim;
CREATE INDEX queue_claim ON queue (pool, batch_id, available_at, line);
DROP INDEX claims_of_pool;
CREATE INDEX claims_of_pool ON claims (pool, tenant_id);
CREATE INDEX batches_of_tenant ON batches (tenant_id, deadline)
  WHERE status = 'in_progress' AND drained_at IS NULL AND NOT expiring;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

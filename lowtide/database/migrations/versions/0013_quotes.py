"""The API may read interruptions of spot, which a cell's quotes contain."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute(
        "GRANT SELECT (at, fleet, pool, interrupted, replica_seconds) ON pool_samples TO lowtide_api"
    )


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

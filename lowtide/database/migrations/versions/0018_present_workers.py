"""What is expected of workers counts those whose engine is there."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"

PRESENT = """
CREATE OR REPLACE FUNCTION living_workers() RETURNS TABLE (pool text, replicas bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT w.pool, count(*) FROM workers w
  WHERE w.expires_at > now() AND w.engine_state = 'closed' GROUP BY w.pool
$$;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(PRESENT)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

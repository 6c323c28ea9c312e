"""How each worker's engine is."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0015"

# As lowtide.domain.breaker has it. A worker of the release before reports nothing: its engine counts
# as well, as it did.
ENGINES = """
ALTER TABLE workers
  ADD COLUMN engine_state text NOT NULL DEFAULT 'closed'
    CHECK (engine_state IN ('starting', 'closed', 'open', 'probing')),
  ADD COLUMN engine_reason text NOT NULL DEFAULT '',
  ADD COLUMN engine_since timestamptz NOT NULL DEFAULT now();

-- KEDA's queries add no replicas to a pool where all engines are away.
GRANT SELECT (pool, expires_at, engine_state) ON workers TO lowtide_autoscaler;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(ENGINES)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

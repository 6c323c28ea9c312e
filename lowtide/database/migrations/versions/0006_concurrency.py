"""The requests in flight that workers found, remembered for the next worker and for plans."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

CONCURRENCY = """
-- What the last search of a fleet's pool found, with LOWTIDE_MODEL_REVISION of its worker: empty where
-- it is not set. A fixed number of requests in flight is not recorded.
CREATE TABLE found_concurrency (
  fleet text NOT NULL,
  pool text NOT NULL,
  concurrency integer NOT NULL CHECK (concurrency > 0),
  model_revision text NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (fleet, pool)
);
GRANT SELECT, INSERT, UPDATE ON found_concurrency TO lowtide_worker;
GRANT SELECT ON found_concurrency TO lowtide_api, lowtide_operator;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(CONCURRENCY)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

"""How fast workers are, measured, and how many are wanted."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

CHANGES = """
-- Since the lease was opened; what a tick has folded into service_rates is in the folded ones.
ALTER TABLE workers
  ADD COLUMN full_lines bigint NOT NULL DEFAULT 0,
  ADD COLUMN full_seconds double precision NOT NULL DEFAULT 0,
  ADD COLUMN folded_lines bigint NOT NULL DEFAULT 0,
  ADD COLUMN folded_seconds double precision NOT NULL DEFAULT 0;

-- Weighted sums over samples, as lowtide.domain.rates has them. Model '' is of mixed batches.
CREATE TABLE service_rates (
  pool text NOT NULL,
  model text NOT NULL,
  seconds double precision NOT NULL,
  lines double precision NOT NULL,
  squares double precision NOT NULL,
  weights double precision NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pool, model)
);

-- How many replicas the last tick wanted, each with the time since when; KEDA's query reads it.
CREATE TABLE wanted_replicas (
  pool text PRIMARY KEY,
  replicas integer NOT NULL,
  since timestamptz[] NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT, INSERT, UPDATE, DELETE ON service_rates, wanted_replicas TO lowtide_worker;
GRANT SELECT ON service_rates, wanted_replicas TO lowtide_operator, lowtide_api;
GRANT SELECT ON wanted_replicas TO lowtide_autoscaler;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(CHANGES)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

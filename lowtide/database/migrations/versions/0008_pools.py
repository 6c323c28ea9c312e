"""Pools that an operator paused, and what pools did minute by minute."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

PAUSES = """
-- A row is a pause: no worker of the pool claims anything, and KEDA counts none of its waiting lines.
CREATE TABLE paused_pools (
  pool text PRIMARY KEY CHECK (pool IN ('spot', 'dedicated')),
  since timestamptz NOT NULL DEFAULT now(),
  paused_by text NOT NULL
);
GRANT SELECT (pool) ON paused_pools TO lowtide_api, lowtide_worker, lowtide_autoscaler;
GRANT SELECT, INSERT, DELETE ON paused_pools TO lowtide_operator;

-- What is done to a pool is done to no tenant in particular.
ALTER TABLE audit_log ALTER tenant_id DROP NOT NULL;
"""

HISTORY = """
-- About one row a pool and minute. `seconds` is the time that the counts behind it are of; the first
-- sample has none.
CREATE TABLE pool_samples (
  at timestamptz NOT NULL,
  pool text NOT NULL,
  queued integer NOT NULL,
  running integer NOT NULL,
  oldest_age double precision NOT NULL,
  desired integer NOT NULL,
  live integer NOT NULL,
  seconds double precision NOT NULL,
  done bigint NOT NULL,
  interrupted bigint NOT NULL,
  replica_seconds double precision NOT NULL,
  PRIMARY KEY (at, pool)
);
-- What the last sample saw of each batch that was open then: the next one counts from there.
CREATE TABLE sampled_work (
  batch_id uuid NOT NULL,
  pool text NOT NULL,
  done bigint NOT NULL,
  interrupted bigint NOT NULL,
  replica_seconds double precision NOT NULL,
  PRIMARY KEY (batch_id, pool)
) WITH (fillfactor = 70);
GRANT SELECT, INSERT, DELETE ON pool_samples TO lowtide_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON sampled_work TO lowtide_worker;
GRANT SELECT ON pool_samples TO lowtide_operator;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(PAUSES)
    op.execute(HISTORY)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

"""Telemetry of workers and their engines, and the model revision of each answer."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

TELEMETRY = """
-- As the worker last reported it, with a renewal of its lease; NULL where it is not known. Token rates
-- are per second; the engine's numbers are those of all its clients, and its KV cache is the used share.
ALTER TABLE workers
  ADD COLUMN input_token_rate double precision,
  ADD COLUMN output_token_rate double precision,
  ADD COLUMN concurrency integer,
  ADD COLUMN engine_running integer,
  ADD COLUMN engine_waiting integer,
  ADD COLUMN engine_kv_cache double precision;
"""
REVISIONS = """
-- LOWTIDE_MODEL_REVISION of the worker whose engine answered.
ALTER TABLE results ADD COLUMN model_revision text;
"""


def upgrade() -> None:
    """Apply."""
    for statements in (TELEMETRY, REVISIONS):
        op.execute(statements)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

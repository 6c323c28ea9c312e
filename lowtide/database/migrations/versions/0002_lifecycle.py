"""Jobs of any size, and the end of data: uploads in parts, segments of batches."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.isolation import isolated

revision = "0002"
down_revision = "0001"

UPLOADS = f"""
-- Uploads in parts. After expires_at, one that is pending is expired; a day later its row goes. A
-- completed one keeps its file's id, though the file may be deleted, and its parts in their order.
CREATE TABLE uploads (
  id uuid PRIMARY KEY,
  tenant_id uuid NOT NULL REFERENCES tenants (id),
  filename text NOT NULL,
  bytes bigint NOT NULL,
  file_expires_after integer,
  status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'completed', 'cancelled')),
  created_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  file_id uuid,
  part_ids uuid[],
  CONSTRAINT uploads_completed CHECK (
    (status = 'completed') = (file_id IS NOT NULL) AND (file_id IS NULL) = (part_ids IS NULL))
);
CREATE INDEX uploads_expiring ON uploads (expires_at);
{isolated("uploads")}
GRANT SELECT, INSERT, UPDATE ON uploads TO lowtide_api;
GRANT SELECT ON uploads TO lowtide_operator;
GRANT SELECT, DELETE ON uploads TO lowtide_worker;

-- The object of a part is in orphan_objects before its first byte is written, until it is deleted.
CREATE TABLE upload_parts (
  id uuid PRIMARY KEY,
  upload_id uuid NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
  tenant_id uuid NOT NULL,
  bytes bigint NOT NULL,
  checksum integer NOT NULL,
  object_key text NOT NULL,
  created_at timestamptz NOT NULL
);
CREATE INDEX upload_parts_of_upload ON upload_parts (upload_id);
{isolated("upload_parts")}
GRANT SELECT, INSERT ON upload_parts TO lowtide_api;
GRANT SELECT ON upload_parts TO lowtide_operator;

-- The end of an upload makes the objects of its parts due.
GRANT UPDATE (due_at) ON orphan_objects TO lowtide_api;
"""

SEGMENTS = f"""
-- A segment is a run of about 50,000 requests of a batch: `lines` of them from first_line on. Split
-- and finalize work one at a time. Its rows in the file's index are the bytes from index_start up to
-- index_end. Output and error bytes are the sizes of its pieces of the two files.
CREATE TABLE segments (
  batch_id uuid NOT NULL,
  number integer NOT NULL CHECK (number > 0),
  tenant_id uuid NOT NULL,
  first_line integer NOT NULL,
  lines integer NOT NULL,
  index_start bigint NOT NULL,
  index_end bigint NOT NULL,
  split_at timestamptz,
  finalized_at timestamptz,
  output_lines integer NOT NULL DEFAULT 0,
  output_bytes bigint NOT NULL DEFAULT 0,
  output_sha256 bytea,
  error_lines integer NOT NULL DEFAULT 0,
  error_bytes bigint NOT NULL DEFAULT 0,
  error_sha256 bytea,
  PRIMARY KEY (batch_id, number)
);
CREATE INDEX segments_to_split ON segments (batch_id, number) WHERE split_at IS NULL;
{isolated("segments")}
GRANT SELECT ON segments TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON segments TO lowtide_worker;
"""

ZERO_RETENTION = f"""
-- A data key encrypts an input file, the parts of an upload, or the answers of a batch, whose id it
-- has. It is wrapped by the master key, which is not in the database. Deleting the row destroys it.
CREATE TABLE data_keys (
  id uuid PRIMARY KEY,
  tenant_id uuid NOT NULL REFERENCES tenants (id),
  wrapped bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
{isolated("data_keys")}
GRANT SELECT, INSERT, DELETE ON data_keys TO lowtide_api;
GRANT SELECT, DELETE ON data_keys TO lowtide_worker;
GRANT SELECT, INSERT, DELETE, UPDATE (wrapped) ON data_keys TO lowtide_operator;

ALTER TABLE tenants ADD COLUMN zero_retention boolean NOT NULL DEFAULT false;
GRANT SELECT (zero_retention) ON tenants TO lowtide_api;
ALTER TABLE uploads ADD COLUMN zero_retention boolean NOT NULL DEFAULT false;
ALTER TABLE batches ADD COLUMN zero_retention boolean NOT NULL DEFAULT false;
"""

VIEWS = """
DROP VIEW batch_states;
CREATE VIEW batch_states WITH (security_invoker = true) AS
SELECT b.*, c.running,
  t.tallied_completed, t.tallied_failed, t.dead_lettered, t.interrupted, t.retried, t.escalated,
  t.input_tokens, t.output_tokens, t.cached_tokens, t.reasoning_tokens, t.on_dedicated,
  t.spot_seconds, t.dedicated_seconds, t.running_seconds
FROM batches b
CROSS JOIN LATERAL (
  SELECT coalesce(sum(completed), 0)::integer AS tallied_completed,
    coalesce(sum(failed), 0)::integer AS tallied_failed,
    coalesce(sum(dead_lettered), 0)::integer AS dead_lettered,
    coalesce(sum(interrupted), 0)::integer AS interrupted,
    coalesce(sum(retried), 0)::integer AS retried,
    coalesce(sum(escalated), 0)::integer AS escalated,
    coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
    coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
    coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
    coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
    coalesce(sum(completed + failed) FILTER (WHERE pool = 'dedicated'), 0)::integer AS on_dedicated,
    coalesce(sum(replica_seconds) FILTER (WHERE pool = 'spot'), 0) AS spot_seconds,
    coalesce(sum(replica_seconds) FILTER (WHERE pool = 'dedicated'), 0) AS dedicated_seconds,
    coalesce(sum(running_seconds), 0) AS running_seconds
  FROM tallies WHERE batch_id = b.id
) t
CROSS JOIN LATERAL (
  SELECT CASE WHEN b.drained_at IS NULL AND b.status IN ('in_progress', 'cancelling')
    THEN (SELECT count(*) FROM claims WHERE batch_id = b.id)::integer ELSE 0 END AS running) c;
GRANT SELECT ON batch_states TO lowtide_api, lowtide_worker, lowtide_operator;
"""

SCHEMA = (UPLOADS, SEGMENTS, ZERO_RETENTION, VIEWS)


def upgrade() -> None:
    """Apply."""
    for script in SCHEMA:
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

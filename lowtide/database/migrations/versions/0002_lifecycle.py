"""Jobs of any size, and the end of data: uploads in parts, segments of batches."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.isolation import isolated

revision = "0002"
down_revision = "0001"

UPLOADS = f"""
-- Uploads in parts. After expires_at, one that is pending is expired; a day later its row goes. A
-- completed one keeps its file's id, though the file may be deleted, and its parts in their order.
-- A presigned one has part_bytes: the client writes parts of this size, the last one shorter, into
-- the store; they have no rows, as their ids and keys follow from their numbers.
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
  part_bytes bigint,
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

-- The bytes of a presigned upload are not read until a batch is split: until then, when the status
-- is 'uploaded', `lines` is an upper bound, and the hash is unknown.
ALTER TABLE files ALTER COLUMN sha256 DROP NOT NULL;
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

SCHEMA = (UPLOADS, SEGMENTS)


def upgrade() -> None:
    """Apply."""
    for script in SCHEMA:
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

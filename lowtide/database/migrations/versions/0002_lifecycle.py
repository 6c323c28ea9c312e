"""Jobs of any size, and the end of data: uploads in parts, segments of batches, buckets."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.isolation import isolated
from lowtide.database.migrations.views import BATCH_STATES, GRANTS, REQUEST_STATES

revision = "0002"
down_revision = "0001"

UPLOADS = f"""
-- Uploads in parts. After expires_at, one that is pending is expired; a day later its row goes. A
-- completed one keeps its file's id, though the file may be deleted, and its parts in their order.
-- part_count and part_bytes are those of all parts added so far, which are limited.
-- A presigned one has part_size: the client writes parts of this size, the last one shorter, into
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
  part_count integer NOT NULL DEFAULT 0,
  part_bytes bigint NOT NULL DEFAULT 0,
  part_size bigint,
  CONSTRAINT uploads_completed CHECK (
    (status = 'completed') = (file_id IS NOT NULL) AND (file_id IS NULL) = (part_ids IS NULL))
);
CREATE INDEX uploads_expiring ON uploads (expires_at);
{isolated("uploads")}
GRANT SELECT, INSERT, UPDATE ON uploads TO lowtide_api, lowtide_operator;
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
GRANT SELECT, INSERT ON upload_parts TO lowtide_api, lowtide_operator;

-- The end of an upload makes the objects of its parts due.
GRANT UPDATE (due_at) ON orphan_objects TO lowtide_api, lowtide_operator;
"""

FILES = """
-- The index of a file is an object, too (lowtide.files.index); segments is a list of [lines, start,
-- end], where start and end are positions in it. A file that is not indexed has neither.
ALTER TABLE files ADD COLUMN model text, ADD COLUMN index_key text, ADD COLUMN segments jsonb,
  ADD CONSTRAINT files_indexed CHECK ((index_key IS NULL) = (segments IS NULL));

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

BUCKETS = f"""
-- Folders of object stores that a tenant's batches may read inputs from or write results to.
-- `credentials` is the name of a set that the installation has, never a secret.
CREATE TABLE buckets (
  tenant_id uuid NOT NULL REFERENCES tenants (id),
  url text NOT NULL,
  may_read boolean NOT NULL,
  may_write boolean NOT NULL,
  credentials text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  created_by text NOT NULL,
  PRIMARY KEY (tenant_id, url)
);
{isolated("buckets")}
GRANT SELECT ON buckets TO lowtide_api, lowtide_worker;
GRANT SELECT, INSERT, DELETE ON buckets TO lowtide_operator;
"""

TRANSFERS = """
-- The input of a batch with input_url is imported before the split. The process that copies from or
-- to a bucket renews transfer_until: until then, no other one starts. An export that is pending is
-- announced at export_next_at, once the batch has ended.
ALTER TABLE batches
  ADD COLUMN input_url text,
  ADD COLUMN imported_at timestamptz,
  ADD COLUMN output_url text,
  ADD COLUMN export_state text CHECK (export_state IN ('pending', 'completed', 'failed')),
  ADD COLUMN export_error text,
  ADD COLUMN export_next_at timestamptz,
  ADD COLUMN transfer_until timestamptz,
  ADD CONSTRAINT batches_export CHECK ((output_url IS NULL) = (export_state IS NULL));
CREATE INDEX batches_exporting ON batches (export_next_at)
  WHERE export_state = 'pending' AND status IN ('completed', 'failed', 'expired', 'cancelled');
-- An import admits the requests of its batch, as the creation of a batch from a file does.
GRANT EXECUTE ON FUNCTION lock_batch_limits(), open_work(), living_workers() TO lowtide_worker;
"""

ZERO_RETENTION = f"""
-- A data key encrypts an input file, the parts of an upload, or the answers of a batch, whose id it
-- has. It is wrapped by the master key, which is not in the database. Deleting the row destroys it.
-- An imported file has another id than the object that the import wrote: file_id.
CREATE TABLE data_keys (
  id uuid PRIMARY KEY,
  tenant_id uuid NOT NULL REFERENCES tenants (id),
  wrapped bytea NOT NULL,
  file_id uuid,
  created_at timestamptz NOT NULL DEFAULT now()
);
{isolated("data_keys")}
GRANT SELECT, INSERT, DELETE ON data_keys TO lowtide_api;
GRANT SELECT, INSERT, DELETE, UPDATE (file_id) ON data_keys TO lowtide_worker;
GRANT SELECT, INSERT, DELETE, UPDATE (wrapped) ON data_keys TO lowtide_operator;

ALTER TABLE tenants ADD COLUMN zero_retention boolean NOT NULL DEFAULT false;
GRANT SELECT (zero_retention) ON tenants TO lowtide_api;
ALTER TABLE uploads ADD COLUMN zero_retention boolean NOT NULL DEFAULT false;
ALTER TABLE batches ADD COLUMN zero_retention boolean NOT NULL DEFAULT false;
"""


SEGMENTS_OF_BATCHES = """
-- Batches of the previous release have one each, which is split. The owner sees every batch.
ALTER TABLE segments NO FORCE ROW LEVEL SECURITY;
INSERT INTO segments (batch_id, number, tenant_id, first_line, lines, index_start, index_end, split_at)
SELECT id, 1, tenant_id, 1, total, 0, 0, coalesce(in_progress_at, created_at)
FROM batches WHERE total > 0;
ALTER TABLE segments FORCE ROW LEVEL SECURITY;
"""

SEARCH = """
-- Requests from first_line up to last_line wait to be indexed: a segment of their batch. The defaults
-- are the whole batch, for a split of the previous release.
ALTER TABLE search_backlog ADD COLUMN first_line integer NOT NULL DEFAULT 1,
  ADD COLUMN last_line integer NOT NULL DEFAULT 2147483647,
  DROP CONSTRAINT search_backlog_pkey, ADD PRIMARY KEY (batch_id, first_line);
"""

_ENDED = "status IN ('completed', 'failed', 'expired', 'cancelled')"
_END = "coalesce(completed_at, failed_at, expired_at, cancelled_at)"
RETENTION = f"""
-- Seconds after a batch's end until its data ends; NULL takes the installation's setting.
ALTER TABLE tenants ADD COLUMN batch_retention integer CHECK (batch_retention > 0);
GRANT SELECT (batch_retention) ON tenants TO lowtide_api;
GRANT SELECT (batch_id), DELETE ON batch_terms TO lowtide_worker;

-- From data_ended_at on, nobody reads the batch's requests, results, events and dead letters; they
-- are deleted soon after, which data_deleted records. Closed batches' tallies are folded.
ALTER TABLE batches
  ADD COLUMN data_ended_at timestamptz,
  ADD COLUMN data_deleted boolean NOT NULL DEFAULT false,
  ADD COLUMN tallies_folded boolean NOT NULL DEFAULT false,
  ADD CONSTRAINT batches_data_ended CHECK (data_ended_at IS NULL OR {_ENDED}),
  ADD CONSTRAINT batches_data_deleted CHECK (data_ended_at IS NOT NULL OR NOT data_deleted);
CREATE INDEX batches_with_data ON batches (id) WHERE data_ended_at IS NULL;
CREATE INDEX batches_data_overdue ON batches (id) WHERE data_ended_at IS NOT NULL AND NOT data_deleted;
CREATE INDEX batches_unfolded ON batches (id) WHERE NOT tallies_folded AND {_ENDED};
-- lowtide.retention.store has the same expressions: the planner matches them as written.
CREATE INDEX batches_data_of_tenant ON batches (tenant_id, ({_END} AT TIME ZONE 'UTC'))
  WHERE data_ended_at IS NULL AND output_expires_after IS NULL AND {_ENDED};
CREATE INDEX batches_data_with_own_end ON batches (
    (({_END} AT TIME ZONE 'UTC') + make_interval(secs => output_expires_after)))
  WHERE data_ended_at IS NULL AND output_expires_after IS NOT NULL AND {_ENDED};
"""  # noqa: S608

PARTITIONED = ("requests", "results", "custom_ids", "request_events", "dead_letters")
# Each index of a partition has its parent's name and the day.
_INDEXES = """
ALTER TABLE requests ADD PRIMARY KEY (batch_id, line);

ALTER TABLE results ADD PRIMARY KEY (batch_id, line);
CREATE INDEX results_failed ON results (batch_id, line) WHERE NOT succeeded;

CREATE INDEX custom_ids_sorted ON custom_ids (tenant_id, custom_id, batch_id DESC);

ALTER TABLE request_events ADD PRIMARY KEY (batch_id, id);
CREATE INDEX request_events_of_batch ON request_events (batch_id, line, id);
CREATE INDEX request_events_notes ON request_events (batch_id, id DESC)
  WHERE kind IN ('interrupted', 'escalated', 'revoked', 'returned', 'at_risk', 'on_track');

ALTER TABLE dead_letters ADD PRIMARY KEY (batch_id, line);
CREATE INDEX dead_letters_newest
  ON dead_letters (tenant_id, at DESC, batch_id DESC, line DESC);
CREATE INDEX dead_letters_by_state
  ON dead_letters (tenant_id, state, at DESC, batch_id DESC, line DESC);
CREATE INDEX dead_letters_by_code
  ON dead_letters (tenant_id, error_code, at DESC, batch_id DESC, line DESC);
CREATE INDEX dead_letters_of_batch ON dead_letters (batch_id, at DESC, line DESC);
CREATE INDEX dead_letters_in_order ON dead_letters (tenant_id, batch_id, line);
CREATE INDEX dead_letters_by_requeue_key ON dead_letters (tenant_id, requeue_key)
  WHERE requeue_key IS NOT NULL;
"""
_ACCESS = f"""
{"".join(isolated(table) for table in PARTITIONED)}
GRANT SELECT ON requests, results, custom_ids, request_events, dead_letters
  TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON requests, results, custom_ids, request_events, dead_letters
  TO lowtide_worker;
GRANT UPDATE (state, requeued_as, ended_at, actor, requeue_key, requeue_digest) ON dead_letters
  TO lowtide_api, lowtide_operator;
"""
_NAME_HTTP_ERROR = """
CREATE TRIGGER name_http_error AFTER INSERT ON dead_letters
  FOR EACH ROW WHEN (NEW.error_code IS NULL) EXECUTE FUNCTION name_http_error();
"""

PARTITIONS = f"""
-- The id of a batch begins with the milliseconds of its creation: a range of ids is a range of time.
CREATE FUNCTION first_id(day date) RETURNS uuid
LANGUAGE sql IMMUTABLE SET search_path = public, pg_temp AS $$
  SELECT (lpad(to_hex((day - date '1970-01-01') * 86400000::bigint), 12, '0')
    || repeat('0', 20))::uuid
$$;
CREATE FUNCTION day_of(id uuid) RETURNS date
LANGUAGE sql IMMUTABLE SET search_path = public, pg_temp AS $$
  SELECT date '1970-01-01'
    + (('x0000' || left(replace(id::text, '-', ''), 12))::bit(64)::bigint / 86400000)::integer
$$;

-- A partition is named after its last day; only the first has no low end, and may have many days.
CREATE VIEW data_partitions AS
SELECT p.relname::text AS parent, c.relname::text AS name, c.oid AS relation,
  substring(b.bounds FROM 'FROM \\(''([^'']+)''\\)')::uuid AS low,
  substring(b.bounds FROM 'TO \\(''([^'']+)''\\)')::uuid AS high
FROM pg_inherits i
JOIN pg_class p ON p.oid = i.inhparent AND p.relnamespace = 'public'::regnamespace
JOIN pg_class c ON c.oid = i.inhrelid
CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bounds) b
WHERE p.relname IN {PARTITIONED} AND p.relkind = 'p';
GRANT SELECT ON data_partitions TO lowtide_worker, lowtide_operator;

CREATE FUNCTION name_indexes(partition regclass, day text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  index record;
BEGIN
  FOR index IN
    SELECT c.relname AS own, p.relname || '_' || day AS wanted
    FROM pg_index x
    JOIN pg_class c ON c.oid = x.indexrelid
    JOIN pg_inherits i ON i.inhrelid = x.indexrelid
    JOIN pg_class p ON p.oid = i.inhparent
    WHERE x.indrelid = partition AND c.relname <> p.relname || '_' || day
  LOOP
    EXECUTE format('ALTER INDEX %I RENAME TO %I', index.own, index.wanted);
  END LOOP;
END $$;

-- Makes the partitions of the day of a batch, and returns how many of the tables lacked theirs. A
-- table attached as a partition, unlike one created as such, blocks no statement meanwhile. Nobody
-- has access to a partition other than through its parent.
CREATE FUNCTION make_partitions(batch uuid) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  day date := day_of(batch);
  suffix text := to_char(day, 'YYYYMMDD');
  known text[];
  made integer := 0;
  table_ text;
  partition text;
BEGIN
  IF (SELECT count(to_regclass(t || '_' || suffix)) FROM unnest(ARRAY{list(PARTITIONED)}) t) = {len(PARTITIONED)} THEN
    RETURN 0;
  END IF;
  known := ARRAY(SELECT parent FROM data_partitions WHERE coalesce(low <= batch, true) AND batch < high);
  IF cardinality(known) = {len(PARTITIONED)} THEN
    RETURN 0;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended('partitions', 0));
  known := ARRAY(SELECT parent FROM data_partitions WHERE coalesce(low <= batch, true) AND batch < high);
  FOREACH table_ IN ARRAY ARRAY{list(PARTITIONED)} LOOP
    CONTINUE WHEN table_ = ANY(known);
    partition := table_ || '_' || suffix;
    EXECUTE format(
      'CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES)', partition, table_);
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', partition);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
      table_, partition, first_id(day), first_id(day + 1));
    PERFORM name_indexes(partition::regclass, suffix);
    made := made + 1;
  END LOOP;
  RETURN made;
END $$;

-- Drops a partition, unless a batch of its days still has data, or a batch of today may get some.
-- The lock of the parent keeps new data away from the second look. It comes last, as all others wait
-- for it: 50 ms at most, after which this fails, to be tried again, as while a vacuum is at work.
CREATE FUNCTION drop_partition(partition text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
  old record;
  is_locked boolean := false;
BEGIN
  SELECT * INTO old FROM data_partitions WHERE name = partition;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  LOOP
    IF old.high > first_id((now() AT TIME ZONE 'UTC')::date) OR EXISTS (
      SELECT FROM batches WHERE id >= coalesce(old.low, first_id('1970-01-01')) AND id < old.high
        AND data_ended_at IS NULL)
    THEN
      RAISE EXCEPTION 'partition % has data of batches', partition USING ERRCODE = 'object_in_use';
    END IF;
    EXIT WHEN is_locked;
    EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', partition);
    EXECUTE format('LOCK TABLE ONLY %I IN ACCESS EXCLUSIVE MODE', old.parent);
    is_locked := true;
  END LOOP;
  EXECUTE format('DROP TABLE IF EXISTS %I', partition);
  RETURN true;
EXCEPTION WHEN undefined_table THEN
  -- Another tick has dropped it while this one waited for its lock.
  RETURN false;
END $$;

REVOKE ALL ON FUNCTION name_indexes(regclass, text), make_partitions(uuid), drop_partition(text)
  FROM PUBLIC;
GRANT EXECUTE ON FUNCTION make_partitions(uuid), drop_partition(text) TO lowtide_worker;
"""  # noqa: S608
_DAYS_AHEAD = 3


def _partition_tables() -> None:
    """Make the tables partitioned, without copying: what is in them becomes the first partition.

    It ends with today, or with the last day of which there are batches, if a clock was ahead.
    """
    day, suffix, high = (
        op.get_bind()
        .exec_driver_sql(
            "SELECT day, to_char(day, 'YYYYMMDD'), first_id(day + 1) FROM (SELECT greatest("
            "(now() AT TIME ZONE 'UTC')::date, (SELECT day_of(id) FROM batches ORDER BY id DESC LIMIT 1)) AS day) d"
        )
        .one()
    )
    op.execute(
        "DROP VIEW request_states, batch_states; DROP TRIGGER name_http_error ON dead_letters"
    )
    for table in PARTITIONED:
        op.execute(f"""
ALTER TABLE {table} RENAME TO {table}_{suffix};
DO $$ DECLARE index name; BEGIN
  FOR index IN SELECT c.relname FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
    WHERE x.indrelid = '{table}_{suffix}'::regclass
  LOOP EXECUTE format('ALTER INDEX %I RENAME TO %I', index, index || '_{suffix}'); END LOOP;
END $$;
REVOKE ALL ON {table}_{suffix} FROM lowtide_api, lowtide_worker, lowtide_operator;
DROP POLICY own_tenant ON {table}_{suffix};
DROP POLICY every_tenant ON {table}_{suffix};
CREATE TABLE {table} (LIKE {table}_{suffix} INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES)
  PARTITION BY RANGE (batch_id);
""")  # noqa: S608
    op.execute(f"""
ALTER TABLE request_events_{suffix} DROP CONSTRAINT request_events_pkey_{suffix},
  ADD CONSTRAINT request_events_pkey_{suffix} PRIMARY KEY (batch_id, id);
ALTER TABLE request_events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY;
SELECT setval(pg_get_serial_sequence('request_events', 'id'), nextval(
  pg_get_serial_sequence('request_events_{suffix}', 'id')), false);
ALTER TABLE request_events_{suffix} ALTER COLUMN id DROP IDENTITY;
{_INDEXES} {_ACCESS} {_NAME_HTTP_ERROR}
""")
    for table in PARTITIONED:
        op.execute(
            f"ALTER TABLE {table} ATTACH PARTITION {table}_{suffix} "
            f"FOR VALUES FROM (MINVALUE) TO ('{high}')"
        )
    op.execute(
        f"SELECT make_partitions(first_id('{day}'::date + n)) FROM generate_series(1, {_DAYS_AHEAD}) n"  # noqa: S608
    )


ERASURE = f"""
-- What the scheduler still has to erase of a batch, in sets of requests: it is done up to after_line.
-- `bodies` are those of the results of a closed batch, which its files have. The other parts follow
-- the deletion of a file: `output` and `error` are the answers in it, `input` the custom_ids, once
-- the batch has ended.
CREATE TABLE erasures (
  batch_id uuid NOT NULL,
  part text NOT NULL CHECK (part IN ('bodies', 'output', 'error', 'input')),
  tenant_id uuid NOT NULL,
  due_at timestamptz NOT NULL DEFAULT now(),
  after_line integer NOT NULL DEFAULT 0,
  PRIMARY KEY (batch_id, part)
);
-- In the order in which lowtide.batches.erasure takes them: the retention of thousands of batches
-- may end at once.
CREATE INDEX erasures_next ON erasures ((part = 'bodies'), due_at);
{isolated("erasures")}
GRANT INSERT ON erasures TO lowtide_api;
GRANT SELECT, INSERT ON erasures TO lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON erasures TO lowtide_worker;

-- The most frequent errors of a closed batch, counted before its bodies go. Errors of batches that
-- run are counted when they are read.
ALTER TABLE batches ADD COLUMN top_errors jsonb;

GRANT DELETE ON custom_ids TO lowtide_worker;
"""

SCHEMA = (
    UPLOADS,
    FILES,
    SEGMENTS,
    SEGMENTS_OF_BATCHES,
    SEARCH,
    RETENTION,
    ERASURE,
    BUCKETS,
    TRANSFERS,
    ZERO_RETENTION,
    PARTITIONS,
)


def upgrade() -> None:
    """Apply."""
    for script in SCHEMA:
        op.execute(script)
    _partition_tables()
    op.execute(REQUEST_STATES)
    op.execute(BATCH_STATES)
    op.execute(GRANTS)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

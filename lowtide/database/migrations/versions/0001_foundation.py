"""Tenants, files, batches, the queue and its results, the outbox; roles and row-level security."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

ROLES = ("lowtide_api", "lowtide_worker", "lowtide_operator", "lowtide_autoscaler")

TABLES = """
CREATE TABLE tenants (
  id uuid PRIMARY KEY,
  name text NOT NULL UNIQUE,
  weight integer NOT NULL DEFAULT 1 CHECK (weight > 0),
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
  hash bytea PRIMARY KEY,
  tenant_id uuid NOT NULL REFERENCES tenants (id),
  name text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz
);

CREATE TABLE files (
  id uuid PRIMARY KEY,
  tenant_id uuid NOT NULL REFERENCES tenants (id),
  purpose text NOT NULL CHECK (purpose IN ('batch', 'batch_output')),
  filename text NOT NULL,
  bytes bigint NOT NULL,
  lines integer NOT NULL,
  sha256 bytea NOT NULL,
  object_key text NOT NULL,
  status text NOT NULL CHECK (status IN ('uploaded', 'processed', 'error')),
  status_details text,
  endpoint text,
  created_at timestamptz NOT NULL,
  expires_at timestamptz
);
CREATE INDEX files_newest ON files (tenant_id, id DESC);
CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE batches (
  id uuid PRIMARY KEY,
  tenant_id uuid NOT NULL REFERENCES tenants (id),
  user_id text NOT NULL,
  input_file_id uuid NOT NULL,
  input_key text NOT NULL,
  endpoint text NOT NULL,
  model text,
  completion_window text NOT NULL,
  status text NOT NULL DEFAULT 'validating' CHECK (status IN (
    'validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired',
    'cancelling', 'cancelled')),
  created_at timestamptz NOT NULL,
  deadline timestamptz NOT NULL,
  in_progress_at timestamptz,
  finalizing_at timestamptz,
  completed_at timestamptz,
  failed_at timestamptz,
  expired_at timestamptz,
  cancelling_at timestamptz,
  cancelled_at timestamptz,
  drained_at timestamptz,
  nudged_at timestamptz NOT NULL DEFAULT now(),
  at_risk boolean NOT NULL DEFAULT false,
  expiring boolean NOT NULL DEFAULT false,
  total integer NOT NULL DEFAULT 0,
  completed integer NOT NULL DEFAULT 0,
  failed integer NOT NULL DEFAULT 0,
  output_file_id uuid REFERENCES files (id) ON DELETE SET NULL,
  error_file_id uuid REFERENCES files (id) ON DELETE SET NULL,
  errors jsonb,
  metadata jsonb,
  output_expires_after integer,
  idempotency_key text,
  UNIQUE (tenant_id, idempotency_key)
);
CREATE INDEX batches_newest ON batches (tenant_id, id DESC);
CREATE INDEX batches_by_input ON batches (input_file_id);
CREATE INDEX batches_by_output ON batches (output_file_id) WHERE output_file_id IS NOT NULL;
CREATE INDEX batches_by_error ON batches (error_file_id) WHERE error_file_id IS NOT NULL;
CREATE INDEX batches_active ON batches (deadline)
  WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');

CREATE INDEX batches_ended
  ON batches (coalesce(completed_at, failed_at, expired_at, cancelled_at))
  WHERE status IN ('completed', 'failed', 'expired', 'cancelled');

CREATE TABLE requests (
  batch_id uuid NOT NULL,
  line integer NOT NULL,
  tenant_id uuid NOT NULL,
  start bigint NOT NULL,
  length integer NOT NULL,
  custom_id text NOT NULL,
  PRIMARY KEY (batch_id, line)
);

CREATE TABLE queue (
  batch_id uuid NOT NULL,
  tenant_id uuid NOT NULL,
  deadline timestamptz NOT NULL,
  available_at timestamptz NOT NULL,
  queued_at timestamptz NOT NULL,
  line integer NOT NULL,
  attempts smallint NOT NULL DEFAULT 0,
  interruptions smallint NOT NULL DEFAULT 0,
  lost_leases smallint NOT NULL DEFAULT 0,
  escalated boolean NOT NULL DEFAULT false,
  pool text NOT NULL,
  PRIMARY KEY (batch_id, line)
);
CREATE INDEX queue_claim ON queue (pool, deadline, batch_id, line);

CREATE TABLE workers (
  id uuid PRIMARY KEY,
  pool text NOT NULL,
  name text NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  heartbeat_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL
);

CREATE TABLE claims (
  batch_id uuid NOT NULL,
  tenant_id uuid NOT NULL,
  lease_id uuid NOT NULL,
  deadline timestamptz NOT NULL,
  queued_at timestamptz NOT NULL,
  claimed_at timestamptz NOT NULL,
  line integer NOT NULL,
  attempts smallint NOT NULL,
  interruptions smallint NOT NULL,
  lost_leases smallint NOT NULL,
  escalated boolean NOT NULL,
  pool text NOT NULL,
  PRIMARY KEY (batch_id, line)
);
CREATE INDEX claims_of_pool ON claims (pool);

CREATE TABLE results (
  batch_id uuid NOT NULL,
  tenant_id uuid NOT NULL,
  lease_id uuid NOT NULL,
  started_at timestamptz NOT NULL,
  finished_at timestamptz NOT NULL,
  line integer NOT NULL,
  input_tokens integer NOT NULL,
  output_tokens integer NOT NULL,
  status_code smallint,
  attempts smallint NOT NULL,
  interruptions smallint NOT NULL,
  succeeded boolean NOT NULL,
  escalated boolean NOT NULL,
  dead_lettered boolean NOT NULL,
  pool text NOT NULL,
  request_id text NOT NULL,
  body text,
  error_code text,
  error_message text,
  settled_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
  PRIMARY KEY (batch_id, line)
);

CREATE TABLE tallies (
  batch_id uuid NOT NULL,
  pool text NOT NULL,
  lease_id uuid NOT NULL,
  tenant_id uuid NOT NULL,
  completed integer NOT NULL DEFAULT 0,
  failed integer NOT NULL DEFAULT 0,
  interrupted integer NOT NULL DEFAULT 0,
  retried integer NOT NULL DEFAULT 0,
  escalated integer NOT NULL DEFAULT 0,
  input_tokens bigint NOT NULL DEFAULT 0,
  output_tokens bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (batch_id, pool, lease_id)
);

CREATE TABLE request_events (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant_id uuid NOT NULL,
  batch_id uuid NOT NULL,
  line integer,
  lines integer NOT NULL DEFAULT 1,
  kind text NOT NULL CHECK (kind IN ('interrupted', 'escalated', 'retried', 'dead_lettered')),
  pool text NOT NULL,
  lease_id uuid,
  detail text NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX request_events_of_batch ON request_events (batch_id, line, id);

CREATE TABLE dead_letters (
  batch_id uuid NOT NULL,
  line integer NOT NULL,
  tenant_id uuid NOT NULL,
  attempts smallint NOT NULL,
  error_code text,
  error_message text,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (batch_id, line)
);
CREATE INDEX dead_letters_newest ON dead_letters (tenant_id, at DESC);

CREATE TABLE outbox (
  id uuid PRIMARY KEY,
  tenant_id uuid NOT NULL,
  type text NOT NULL,
  subject text NOT NULL,
  data jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

-- Objects that belong to no row: an upload that has not ended, a file that was deleted. The scheduler
-- removes them from the object store once they are due.
CREATE TABLE stray_objects (
  object_key text PRIMARY KEY,
  tenant_id uuid NOT NULL,
  due_at timestamptz NOT NULL
);
CREATE INDEX stray_objects_due ON stray_objects (due_at);

CREATE TABLE models (
  name text PRIMARY KEY,
  first_seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE audit_log (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant_id uuid NOT NULL,
  actor text NOT NULL,
  action text NOT NULL,
  subject text NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
"""

VIEWS = """
-- The one place that derives a request's status; API, portal and metrics all read it. OFFSET 0 keeps
-- each join a look-up by key while the statistics do not know a new batch.
CREATE VIEW request_states WITH (security_invoker = true) AS
SELECT r.batch_id, r.line, r.tenant_id, r.custom_id, r.start, r.length,
  CASE
    WHEN f.dead_lettered THEN 'DeadLettered'
    WHEN f.succeeded THEN 'Completed'
    WHEN f.batch_id IS NOT NULL THEN 'Failed'
    WHEN c.batch_id IS NOT NULL THEN 'Running'
    WHEN q.batch_id IS NOT NULL THEN 'Queued'
    ELSE 'Failed'
  END AS status,
  coalesce(f.pool, c.pool, q.pool) AS pool,
  coalesce(f.attempts, c.attempts, q.attempts, 0) AS attempts,
  coalesce(f.interruptions, c.interruptions, q.interruptions, 0) AS interruptions,
  coalesce(f.escalated, c.escalated, q.escalated, false) AS escalated,
  coalesce(c.queued_at, q.queued_at) AS queued_at,
  coalesce(f.started_at, c.claimed_at) AS started_at,
  f.finished_at, f.status_code, f.error_code, f.error_message
FROM requests r
LEFT JOIN LATERAL (
  SELECT * FROM results WHERE batch_id = r.batch_id AND line = r.line OFFSET 0) f ON true
LEFT JOIN LATERAL (
  SELECT * FROM claims WHERE batch_id = r.batch_id AND line = r.line OFFSET 0) c ON true
LEFT JOIN LATERAL (
  SELECT * FROM queue WHERE batch_id = r.batch_id AND line = r.line OFFSET 0) q ON true;

-- Counts come from the per-worker tallies, so that finishing a line locks no shared row.
CREATE VIEW batch_states WITH (security_invoker = true) AS
SELECT b.*,
  t.tallied_completed, t.tallied_failed, t.interrupted, t.retried, t.escalated,
  t.input_tokens, t.output_tokens, t.on_dedicated
FROM batches b
CROSS JOIN LATERAL (
  SELECT coalesce(sum(completed), 0)::integer AS tallied_completed,
    coalesce(sum(failed), 0)::integer AS tallied_failed,
    coalesce(sum(interrupted), 0)::integer AS interrupted,
    coalesce(sum(retried), 0)::integer AS retried,
    coalesce(sum(escalated), 0)::integer AS escalated,
    coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
    coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
    coalesce(sum(completed + failed) FILTER (WHERE pool = 'dedicated'), 0)::integer AS on_dedicated
  FROM tallies WHERE batch_id = b.id
) t;
"""

AUTHENTICATE = """
-- A key's tenant must be known before row-level security can apply; this is the one way past it.
CREATE FUNCTION authenticate(key_hash bytea) RETURNS TABLE (tenant_id uuid, key_name text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT k.tenant_id, k.name FROM api_keys k WHERE k.hash = key_hash AND k.revoked_at IS NULL
$$;
CREATE FUNCTION tenant_named(wanted text) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT id FROM tenants WHERE name = wanted
$$;
REVOKE ALL ON FUNCTION authenticate(bytea), tenant_named(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION authenticate(bytea), tenant_named(text) TO lowtide_api, lowtide_operator;
"""

GRANTS = """
GRANT SELECT, INSERT, UPDATE, DELETE ON files TO lowtide_api;
GRANT SELECT, INSERT, UPDATE ON batches TO lowtide_api;
GRANT SELECT, DELETE ON queue TO lowtide_api;
GRANT SELECT, INSERT, DELETE ON outbox, stray_objects TO lowtide_api;
GRANT SELECT ON models TO lowtide_api;
GRANT SELECT ON requests, claims, results, tallies, request_events, dead_letters TO lowtide_api;
GRANT SELECT ON request_states, batch_states TO lowtide_api;
GRANT INSERT ON audit_log TO lowtide_api;

GRANT SELECT, INSERT, UPDATE, DELETE ON files, batches, requests, queue, claims, workers, results,
  tallies, request_events, dead_letters, outbox, stray_objects, models TO lowtide_worker;
GRANT SELECT ON tenants, request_states, batch_states TO lowtide_worker;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO lowtide_operator;
GRANT INSERT, UPDATE ON tenants, api_keys, files, batches TO lowtide_operator;
GRANT DELETE ON queue TO lowtide_operator;
GRANT INSERT, DELETE ON outbox TO lowtide_operator;
GRANT INSERT ON audit_log TO lowtide_operator;

GRANT SELECT ON queue, claims TO lowtide_autoscaler;
"""

TENANT_OWNED = (
    "api_keys", "files", "batches", "requests", "queue", "claims", "results", "tallies",
    "request_events", "dead_letters", "outbox", "stray_objects", "audit_log",
)  # fmt: skip

SETTINGS = """
ALTER TABLE queue SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
ALTER TABLE claims SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
  fillfactor = 90);
ALTER TABLE tallies SET (fillfactor = 70);
ALTER TABLE workers SET (fillfactor = 50);
"""


def upgrade() -> None:
    """Apply."""
    for role in ROLES:
        op.execute(
            f"DO $$ BEGIN CREATE ROLE {role} LOGIN; "
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
    for script in (TABLES, VIEWS, AUTHENTICATE, GRANTS, SETTINGS):
        op.execute(script)
    for table in TENANT_OWNED:
        _isolate(table, "tenant_id")
    _isolate("tenants", "id")
    for table in ("tenants", "api_keys"):
        # The owner creates tenants and runs authenticate(), and FORCE binds it too.
        op.execute(f"CREATE POLICY owner ON {table} TO CURRENT_USER USING (true)")


def _isolate(table: str, column: str) -> None:
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY own_tenant ON {table} TO lowtide_api "
        f"USING ({column} = nullif(current_setting('lowtide.tenant', true), '')::uuid)"
    )
    op.execute(
        f"CREATE POLICY every_tenant ON {table} "
        "TO lowtide_worker, lowtide_operator, lowtide_autoscaler USING (true)"
    )


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

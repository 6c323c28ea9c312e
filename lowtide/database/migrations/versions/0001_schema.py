"""The schema: roles, tables with their policies and grants, functions and views."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.isolation import isolated
from lowtide.database.migrations.views import REQUEST_STATES

revision = "0001"
down_revision = None

ROLES = ("lowtide_api", "lowtide_worker", "lowtide_operator", "lowtide_autoscaler")

# A process is ready only once it sees the revision that it needs.
REVISION = """
GRANT SELECT ON alembic_version TO lowtide_api, lowtide_worker, lowtide_operator;
"""


TENANTS = f"""
-- A limit of NULL is unlimited.
CREATE TABLE tenants (
  id uuid PRIMARY KEY,
  name text NOT NULL UNIQUE,
  weight integer NOT NULL DEFAULT 1 CHECK (weight > 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  max_requests_per_minute integer CHECK (max_requests_per_minute > 0),
  max_active_batches integer CHECK (max_active_batches > 0),
  max_queued_lines integer CHECK (max_queued_lines > 0),
  max_running_lines integer CHECK (max_running_lines > 0)
);
{isolated("tenants", "id")}
-- The owner creates tenants and keys and runs authenticate(), and FORCE binds the owner too.
CREATE POLICY owner ON tenants TO CURRENT_USER USING (true);
GRANT SELECT (id, name, max_requests_per_minute, max_active_batches, max_queued_lines,
  max_running_lines) ON tenants TO lowtide_api;
GRANT SELECT ON tenants TO lowtide_worker;
GRANT SELECT, INSERT, UPDATE ON tenants TO lowtide_operator;

-- People recognize a key by its prefix; a key too short to show a part of has none.
CREATE TABLE api_keys (
  hash bytea PRIMARY KEY,
  tenant_id uuid NOT NULL REFERENCES tenants (id),
  name text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz,
  id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
  prefix text,
  expires_at timestamptz,
  last_used_at timestamptz
);
CREATE INDEX api_keys_newest ON api_keys (created_at DESC, id DESC);
CREATE INDEX api_keys_of_tenant ON api_keys (tenant_id, created_at DESC, id DESC);
{isolated("api_keys")}
CREATE POLICY owner ON api_keys TO CURRENT_USER USING (true);
GRANT SELECT, INSERT, UPDATE ON api_keys TO lowtide_operator;

-- One row per tenant with a rate limit: how much of a minute's requests was used at that time.
-- Unlogged, so that counting a request waits for no disk; a crash forgives at most a minute.
CREATE UNLOGGED TABLE request_rates (
  tenant_id uuid PRIMARY KEY,
  used double precision NOT NULL,
  at timestamptz NOT NULL
) WITH (fillfactor = 50);
{isolated("request_rates")}
CREATE POLICY owner ON request_rates TO CURRENT_USER USING (true);
GRANT SELECT ON request_rates TO lowtide_api, lowtide_operator;
"""

FILES = f"""
-- traceparent and tracestate (W3C Trace Context) are of the trace that created the row, here and in
-- batches and outbox.
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
  expires_at timestamptz,
  traceparent text,
  tracestate text
);
CREATE INDEX files_newest ON files (tenant_id, id DESC);
CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL;
{isolated("files")}
-- The owner runs open_work(), and FORCE binds the owner too.
CREATE POLICY owner ON files FOR SELECT TO CURRENT_USER USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON files TO lowtide_api, lowtide_worker;
GRANT SELECT, INSERT, UPDATE ON files TO lowtide_operator;

-- Orphans: objects of uploads that have not ended and of deleted files. After due_at, the scheduler
-- deletes the object.
CREATE TABLE orphan_objects (
  object_key text PRIMARY KEY,
  tenant_id uuid NOT NULL,
  due_at timestamptz NOT NULL
);
CREATE INDEX orphan_objects_due ON orphan_objects (due_at);
{isolated("orphan_objects")}
GRANT SELECT, INSERT, DELETE ON orphan_objects TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON orphan_objects TO lowtide_worker;
"""

BATCHES = f"""
-- Requests of a batch that starts on dedicated stay there: someone chose that pool. A NULL
-- idempotency_digest matches any body. Prices are of a replica hour, as they were at creation.
-- risk_bound is a lowtide.planning.reasons.Bound; a batch that was at risk from the start has none.
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
  risk_reason text,
  risk_bound jsonb,
  risk_since timestamptz,
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
  start_pool text NOT NULL DEFAULT 'spot' CHECK (start_pool IN ('spot', 'dedicated')),
  traceparent text,
  tracestate text,
  idempotency_digest bytea,
  spot_price double precision NOT NULL DEFAULT 0,
  dedicated_price double precision NOT NULL DEFAULT 0,
  currency text NOT NULL DEFAULT 'USD',
  UNIQUE (tenant_id, idempotency_key)
);
CREATE INDEX batches_newest ON batches (tenant_id, id DESC);
CREATE INDEX batches_by_input ON batches (input_file_id, id DESC);
CREATE INDEX batches_by_output ON batches (output_file_id) WHERE output_file_id IS NOT NULL;
CREATE INDEX batches_by_error ON batches (error_file_id) WHERE error_file_id IS NOT NULL;
CREATE INDEX batches_active ON batches (deadline)
  WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
CREATE INDEX batches_ended
  ON batches (coalesce(completed_at, failed_at, expired_at, cancelled_at))
  WHERE status IN ('completed', 'failed', 'expired', 'cancelled');
CREATE INDEX batches_of_tenant ON batches (tenant_id, deadline)
  WHERE status = 'in_progress' AND drained_at IS NULL AND NOT expiring;
-- Earlier runs of the same work, to compare a batch with.
CREATE INDEX batches_completed ON batches (tenant_id, user_id, endpoint, model, id DESC)
  WHERE status = 'completed';
CREATE INDEX batches_active_of_tenant ON batches (tenant_id)
  WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
-- lowtide.batches.list_store has the same expressions: the planner matches them as written.
CREATE INDEX batches_active_first ON batches ((CASE WHEN status IN (
  'validating', 'in_progress', 'finalizing', 'cancelling') THEN 1 ELSE 0 END) DESC, id DESC);
CREATE INDEX batches_urgent_first ON batches ((CASE WHEN status IN (
  'validating', 'in_progress', 'finalizing', 'cancelling') THEN 0 ELSE 1 END), deadline, id);
CREATE INDEX batches_ended_of_tenant
  ON batches (tenant_id, (coalesce(completed_at, failed_at, expired_at, cancelled_at)))
  WHERE status IN ('completed', 'failed', 'expired', 'cancelled');
{isolated("batches")}
-- The owner runs open_work(), and FORCE binds the owner too.
CREATE POLICY owner ON batches FOR SELECT TO CURRENT_USER USING (true);
GRANT SELECT, INSERT, UPDATE ON batches TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON batches TO lowtide_worker;
"""

QUEUE = f"""
-- A NULL checksum matches any bytes.
CREATE TABLE requests (
  batch_id uuid NOT NULL,
  line integer NOT NULL,
  tenant_id uuid NOT NULL,
  start bigint NOT NULL,
  length integer NOT NULL,
  custom_id text NOT NULL,
  checksum integer,
  PRIMARY KEY (batch_id, line)
);
{isolated("requests")}
GRANT SELECT ON requests TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON requests TO lowtide_worker;

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
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
-- A claim reads the requests of one batch in one pool in the order in which they became available.
CREATE INDEX queue_claim ON queue (pool, batch_id, available_at, line);
{isolated("queue")}
-- The owner runs open_work(), and FORCE binds the owner too.
CREATE POLICY owner ON queue FOR SELECT TO CURRENT_USER USING (true);
GRANT SELECT, DELETE ON queue TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON queue TO lowtide_worker;
GRANT SELECT ON queue TO lowtide_autoscaler;

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
) WITH (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, fillfactor = 90
);
CREATE INDEX claims_of_pool ON claims (pool, tenant_id);
{isolated("claims")}
GRANT SELECT ON claims TO lowtide_api, lowtide_operator, lowtide_autoscaler;
GRANT SELECT, INSERT, UPDATE, DELETE ON claims TO lowtide_worker;

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
CREATE INDEX results_failed ON results (batch_id, line) WHERE NOT succeeded;
{isolated("results")}
GRANT SELECT ON results TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON results TO lowtide_worker;

-- replica_seconds is the requests' share of their workers' time, as the workers report it, and
-- running_seconds is the time between claim and result; only accepted results count.
CREATE TABLE tallies (
  batch_id uuid NOT NULL,
  pool text NOT NULL,
  lease_id uuid NOT NULL,
  tenant_id uuid NOT NULL,
  completed integer NOT NULL DEFAULT 0,
  failed integer NOT NULL DEFAULT 0,
  dead_lettered integer NOT NULL DEFAULT 0,
  interrupted integer NOT NULL DEFAULT 0,
  retried integer NOT NULL DEFAULT 0,
  escalated integer NOT NULL DEFAULT 0,
  input_tokens bigint NOT NULL DEFAULT 0,
  output_tokens bigint NOT NULL DEFAULT 0,
  replica_seconds double precision NOT NULL DEFAULT 0,
  running_seconds double precision NOT NULL DEFAULT 0,
  cached_tokens bigint NOT NULL DEFAULT 0,
  reasoning_tokens bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (batch_id, pool, lease_id)
) WITH (fillfactor = 70);
{isolated("tallies")}
-- The owner runs open_work(), and FORCE binds the owner too.
CREATE POLICY owner ON tallies FOR SELECT TO CURRENT_USER USING (true);
GRANT SELECT ON tallies TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON tallies TO lowtide_worker;
"""

SEARCH = f"""
-- The user and the metadata values of batches, as search finds them.
CREATE TABLE batch_terms (
  batch_id uuid NOT NULL,
  tenant_id uuid NOT NULL,
  field text NOT NULL,
  value text COLLATE "C" NOT NULL,
  PRIMARY KEY (batch_id, field)
);
CREATE INDEX batch_terms_by_value ON batch_terms (tenant_id, value, batch_id DESC);
{isolated("batch_terms")}
GRANT SELECT, INSERT ON batch_terms TO lowtide_api, lowtide_operator;

-- The custom_ids of requests, sorted. An index on requests would cost a split a fifth to a third of
-- its rate, so that the scheduler copies them here; until then their batch is in search_backlog,
-- and a search reads its requests.
CREATE TABLE custom_ids (
  batch_id uuid NOT NULL,
  line integer NOT NULL,
  tenant_id uuid NOT NULL,
  custom_id text COLLATE "C" NOT NULL
);
CREATE INDEX custom_ids_sorted ON custom_ids (tenant_id, custom_id, batch_id DESC);
{isolated("custom_ids")}
GRANT SELECT ON custom_ids TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT ON custom_ids TO lowtide_worker;

CREATE TABLE search_backlog (
  batch_id uuid PRIMARY KEY,
  tenant_id uuid NOT NULL
);
{isolated("search_backlog")}
GRANT SELECT ON search_backlog TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON search_backlog TO lowtide_worker;
"""

WORKERS = """
-- A row is a lease. full_lines and full_seconds count from its start; ticks have added the folded
-- part of them to service_rates. engine_state is as in lowtide.engines.breaker.
CREATE TABLE workers (
  id uuid PRIMARY KEY,
  pool text NOT NULL,
  name text NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  heartbeat_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL,
  full_lines bigint NOT NULL DEFAULT 0,
  full_seconds double precision NOT NULL DEFAULT 0,
  folded_lines bigint NOT NULL DEFAULT 0,
  folded_seconds double precision NOT NULL DEFAULT 0,
  engine_state text NOT NULL DEFAULT 'closed'
    CHECK (engine_state IN ('starting', 'closed', 'open', 'probing')),
  engine_reason text NOT NULL DEFAULT '',
  engine_since timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE, DELETE ON workers TO lowtide_worker;
GRANT SELECT ON workers TO lowtide_operator;
-- KEDA's queries add no replicas to a pool in which no engine is available.
GRANT SELECT (pool, expires_at, engine_state) ON workers TO lowtide_autoscaler;

CREATE TABLE models (
  name text PRIMARY KEY,
  first_seen_at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT ON models TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON models TO lowtide_worker;
"""

DEAD_LETTERS = f"""
-- A NULL requeue_digest matches any body.
CREATE TABLE dead_letters (
  batch_id uuid NOT NULL,
  line integer NOT NULL,
  tenant_id uuid NOT NULL,
  attempts smallint NOT NULL,
  error_code text,
  error_message text,
  at timestamptz NOT NULL DEFAULT now(),
  state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'requeued', 'discarded')),
  requeued_as uuid,
  ended_at timestamptz,
  actor text,
  requeue_key text,
  requeue_digest bytea,
  PRIMARY KEY (batch_id, line),
  CONSTRAINT dead_letters_ended CHECK (
    (state = 'open') = (ended_at IS NULL) AND (state = 'requeued') = (requeued_as IS NOT NULL))
);
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
{isolated("dead_letters")}
GRANT SELECT ON dead_letters TO lowtide_api, lowtide_operator;
GRANT UPDATE (state, requeued_as, ended_at, actor, requeue_key, requeue_digest) ON dead_letters
  TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON dead_letters TO lowtide_worker;
"""

DEAD_LETTER_CODES = """
-- A response with an HTTP error has no error code, and dead letters are filtered by code. One
-- statement inserts the result and the dead letter: only a trigger after it sees both.
CREATE FUNCTION name_http_error() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  UPDATE dead_letters d SET error_code = 'http_' || f.status_code
  FROM results f
  WHERE d.batch_id = NEW.batch_id AND d.line = NEW.line
    AND f.batch_id = NEW.batch_id AND f.line = NEW.line AND f.status_code IS NOT NULL;
  RETURN NULL;
END $$;
CREATE TRIGGER name_http_error AFTER INSERT ON dead_letters
  FOR EACH ROW WHEN (NEW.error_code IS NULL) EXECUTE FUNCTION name_http_error();
"""

EVENTS = f"""
CREATE TABLE outbox (
  id uuid PRIMARY KEY,
  tenant_id uuid NOT NULL,
  type text NOT NULL,
  subject text NOT NULL,
  data jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  traceparent text,
  tracestate text,
  attempts smallint NOT NULL DEFAULT 0,
  next_at timestamptz NOT NULL DEFAULT now() + interval '5 seconds'
);
CREATE INDEX outbox_due ON outbox (next_at);
{isolated("outbox")}
GRANT SELECT, INSERT, DELETE ON outbox TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox TO lowtide_worker;

-- The scheduler's moves and marks have a reason and a bound (lowtide.planning.reasons), the others a
-- detail in words.
CREATE TABLE request_events (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant_id uuid NOT NULL,
  batch_id uuid NOT NULL,
  line integer,
  lines integer NOT NULL DEFAULT 1,
  kind text NOT NULL CHECK (kind IN ('interrupted', 'retried', 'dead_lettered', 'escalated',
    'revoked', 'returned', 'at_risk', 'on_track')),
  pool text NOT NULL,
  lease_id uuid,
  detail text NOT NULL DEFAULT '',
  reason text,
  bound jsonb,
  at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX request_events_of_batch ON request_events (batch_id, line, id);
CREATE INDEX request_events_notes ON request_events (batch_id, id DESC)
  WHERE kind IN ('interrupted', 'escalated', 'revoked', 'returned', 'at_risk', 'on_track');
{isolated("request_events")}
GRANT SELECT ON request_events TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON request_events TO lowtide_worker;
"""

SCHEDULER = """
-- Weighted sums over samples, as in lowtide.planning.demand. Model '' stands for several models.
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
GRANT SELECT, INSERT, UPDATE, DELETE ON service_rates TO lowtide_worker;
GRANT SELECT ON service_rates TO lowtide_api, lowtide_operator;

-- Replicas that the last tick wanted, and since when it has wanted each of them. KEDA's query reads
-- it.
CREATE TABLE wanted_replicas (
  pool text PRIMARY KEY,
  replicas integer NOT NULL,
  since timestamptz[] NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, INSERT, UPDATE, DELETE ON wanted_replicas TO lowtide_worker;
GRANT SELECT ON wanted_replicas TO lowtide_api, lowtide_operator, lowtide_autoscaler;

-- A row pauses the pool: its workers claim nothing, and KEDA counts none of its queued requests.
CREATE TABLE paused_pools (
  pool text PRIMARY KEY CHECK (pool IN ('spot', 'dedicated')),
  since timestamptz NOT NULL DEFAULT now(),
  paused_by text NOT NULL
);
GRANT SELECT (pool, since) ON paused_pools TO lowtide_api;
GRANT SELECT (pool) ON paused_pools TO lowtide_autoscaler;
GRANT SELECT ON paused_pools TO lowtide_worker;
GRANT SELECT, INSERT, DELETE ON paused_pools TO lowtide_operator;

-- About one row per pool and minute. The counts are of the last `seconds`; the first sample has 0.
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
GRANT SELECT, INSERT, DELETE ON pool_samples TO lowtide_worker;
GRANT SELECT ON pool_samples TO lowtide_operator;

-- Counts of each batch that was open at the last sample: the next sample counts from there.
CREATE TABLE sampled_work (
  batch_id uuid NOT NULL,
  pool text NOT NULL,
  done bigint NOT NULL,
  interrupted bigint NOT NULL,
  replica_seconds double precision NOT NULL,
  PRIMARY KEY (batch_id, pool)
) WITH (fillfactor = 70);
GRANT SELECT, INSERT, UPDATE, DELETE ON sampled_work TO lowtide_worker;
"""

LAST_SEEN = """
-- One row per component, about twenty, each updated at most every few seconds: the fillfactor keeps
-- every new version of a row on its page.
CREATE TABLE last_seen (
  component text NOT NULL,
  name text NOT NULL,
  succeeded_at timestamptz,
  failed_at timestamptz,
  problem text NOT NULL DEFAULT '',
  PRIMARY KEY (component, name)
) WITH (fillfactor = 25);
GRANT SELECT, INSERT, UPDATE ON last_seen TO lowtide_api, lowtide_worker, lowtide_operator;
"""

AUDIT = f"""
-- An action on a pool belongs to no tenant.
CREATE TABLE audit_log (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant_id uuid,
  actor text NOT NULL,
  action text NOT NULL,
  subject text NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_log_by_actor ON audit_log (actor, id DESC);
CREATE INDEX audit_log_by_action ON audit_log (action, id DESC);
CREATE INDEX audit_log_of_tenant ON audit_log (tenant_id, id DESC);
{isolated("audit_log")}
GRANT INSERT ON audit_log TO lowtide_api;
GRANT SELECT, INSERT ON audit_log TO lowtide_operator;
-- The scheduler may delete old entries only: even the scheduler cannot hide what was done in the
-- last 30 days.
GRANT SELECT (id, at), DELETE ON audit_log TO lowtide_worker;
CREATE POLICY only_old ON audit_log AS RESTRICTIVE FOR DELETE TO lowtide_worker
  USING (at < now() - interval '30 days');
"""

SESSIONS = """
-- Portal sessions that were signed out before they expired: they stay signed out after a restart.
CREATE TABLE signed_out (
  session text PRIMARY KEY CHECK (length(session) <= 64),
  until timestamptz NOT NULL
);
CREATE INDEX signed_out_until ON signed_out (until);
ALTER TABLE signed_out ENABLE ROW LEVEL SECURITY;
ALTER TABLE signed_out FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT ON signed_out TO lowtide_operator;
CREATE POLICY portal_reads ON signed_out FOR SELECT TO lowtide_operator USING (true);
CREATE POLICY portal_adds ON signed_out FOR INSERT TO lowtide_operator WITH CHECK (true);
-- The scheduler may delete expired sessions only, so that it cannot reopen one.
GRANT SELECT (until), DELETE ON signed_out TO lowtide_worker;
CREATE POLICY ended_reads ON signed_out FOR SELECT TO lowtide_worker USING (until < now());
CREATE POLICY ended_goes ON signed_out FOR DELETE TO lowtide_worker USING (until < now());
"""

AUTHENTICATION = """
-- A leaky bucket as a meter (Turner 1986; equal to ITU-T I.371's GCRA): the used amount leaks at
-- the rate of the limit, and a request that fits adds one. The clock is read under the row's lock,
-- so that requests of many processes are counted one after the other. STRICT: without a limit,
-- nothing is counted.
CREATE FUNCTION spend_request(
  tenant uuid, per_minute integer, OUT used double precision, OUT accepted boolean)
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  since timestamptz;
  instant timestamptz;
BEGIN
  LOOP
    SELECT r.used, r.at INTO used, since FROM request_rates r WHERE r.tenant_id = tenant FOR UPDATE;
    EXIT WHEN FOUND;
    INSERT INTO request_rates VALUES (tenant, 0, clock_timestamp()) ON CONFLICT DO NOTHING;
  END LOOP;
  instant := greatest(since, clock_timestamp());
  used := greatest(0, used - per_minute * extract(epoch FROM instant - since)::double precision / 60);
  accepted := used + 1 <= per_minute;
  IF accepted THEN
    used := used + 1;
    UPDATE request_rates r SET used = spend_request.used, at = instant WHERE r.tenant_id = tenant;
  END IF;
END $$;

-- The tenant of a key must be known before row-level security can apply, so this runs as the owner.
-- Key and rate limit are checked in one round trip. last_used_at is updated at most once a minute,
-- by one of the calls that use the key at the same moment: none waits for another.
CREATE FUNCTION authenticate(key_hash bytea) RETURNS TABLE (
  tenant_id uuid, key_id uuid, key_name text, per_minute integer, used double precision,
  accepted boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
  noted timestamptz;
BEGIN
  SELECT k.tenant_id, k.id, k.name, t.max_requests_per_minute, k.last_used_at
  INTO authenticate.tenant_id, authenticate.key_id, authenticate.key_name, authenticate.per_minute,
    noted
  FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
  WHERE k.hash = key_hash AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now());
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF noted IS NULL OR noted < now() - interval '1 minute' THEN
    UPDATE api_keys SET last_used_at = now() WHERE hash = (
      SELECT k.hash FROM api_keys k WHERE k.hash = key_hash FOR NO KEY UPDATE SKIP LOCKED);
  END IF;
  accepted := true;
  IF authenticate.per_minute IS NOT NULL THEN
    SELECT s.used, s.accepted INTO authenticate.used, authenticate.accepted
    FROM spend_request(authenticate.tenant_id, authenticate.per_minute) s;
  END IF;
  RETURN NEXT;
END $$;
CREATE FUNCTION authenticate_anonymous(tenant_name text) RETURNS TABLE (
  tenant_id uuid, per_minute integer, used double precision, accepted boolean)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.id, t.max_requests_per_minute, s.used, coalesce(s.accepted, true)
  FROM tenants t CROSS JOIN LATERAL spend_request(t.id, t.max_requests_per_minute) s
  WHERE t.name = tenant_name
$$;

-- A portal session ends with the key that opened it.
CREATE FUNCTION keys_in_use(ids uuid[]) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT id FROM api_keys
  WHERE id = ANY(ids) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
$$;

REVOKE ALL ON FUNCTION spend_request(uuid, integer), authenticate(bytea),
  authenticate_anonymous(text), keys_in_use(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION authenticate(bytea), authenticate_anonymous(text), keys_in_use(uuid[])
  TO lowtide_api;
"""

ADMISSION = """
-- The limits of the tenant that a transaction acts for, if it has any; they also apply to batches
-- that operators create. Two transactions that create batches of one tenant wait for each other
-- here; other tenants do not wait.
CREATE FUNCTION lock_batch_limits() RETURNS TABLE (active_batches integer, queued_lines integer)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.max_active_batches, t.max_queued_lines FROM tenants t
  WHERE t.id = nullif(current_setting('lowtide.tenant', true), '')::uuid
    AND (t.max_active_batches IS NOT NULL OR t.max_queued_lines IS NOT NULL)
  FOR NO KEY UPDATE
$$;

-- The end of a batch depends on the work of all tenants: these functions return how much there is,
-- but not whose. A tenant is a number that is good for one call, with its weight and its limit.
CREATE FUNCTION open_work() RETURNS TABLE (
  deadline timestamptz, model text, lines bigint, ended bigint, retried bigint,
  running_seconds double precision, sharer bigint, weight integer, max_running integer,
  at_risk boolean, pinned boolean, last_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT b.deadline, b.model, greatest(0,
      CASE WHEN b.status = 'validating'
        THEN coalesce((SELECT f.lines FROM files f WHERE f.id = b.input_file_id), 0)
        ELSE b.total - t.ended END),
    t.ended, t.retried, t.running_seconds, dense_rank() OVER (ORDER BY b.tenant_id), n.weight,
    n.max_running_lines, b.at_risk, b.start_pool = 'dedicated', (
      SELECT max(q.last_at) FROM unnest(ARRAY['spot', 'dedicated']) AS p (pool)
      CROSS JOIN LATERAL (
        SELECT available_at AS last_at FROM queue
        WHERE pool = p.pool AND batch_id = b.id ORDER BY available_at DESC, line DESC LIMIT 1) q)
  FROM batches b
  JOIN tenants n ON n.id = b.tenant_id
  CROSS JOIN LATERAL (
    SELECT coalesce(sum(completed + failed), 0) AS ended, coalesce(sum(retried), 0) AS retried,
      coalesce(sum(running_seconds), 0) AS running_seconds
    FROM tallies WHERE batch_id = b.id) t
  WHERE b.status IN ('validating', 'in_progress') AND b.drained_at IS NULL AND NOT b.expiring
$$;
-- Workers by the state of their engine: only with a closed breaker do they run requests.
CREATE FUNCTION living_workers() RETURNS TABLE (
  pool text, ready bigint, away bigint, starting bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT w.pool, count(*) FILTER (WHERE w.engine_state = 'closed'),
    count(*) FILTER (WHERE w.engine_state IN ('open', 'probing')),
    count(*) FILTER (WHERE w.engine_state = 'starting')
  FROM workers w WHERE w.expires_at > now() GROUP BY w.pool
$$;

-- The limit of running requests of the tenant that a transaction acts for: its batch may wait for it.
CREATE FUNCTION running_limit() RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT t.max_running_lines FROM tenants t
  WHERE t.id = nullif(current_setting('lowtide.tenant', true), '')::uuid
$$;

REVOKE ALL ON FUNCTION lock_batch_limits(), open_work(), living_workers(), running_limit()
  FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lock_batch_limits(), open_work(), living_workers(), running_limit()
  TO lowtide_api, lowtide_operator;
"""

VIEWS = """
-- Counts come from the per-worker tallies, so that settling a request locks no shared row. `b.*` is
-- fixed when the view is created: a migration that adds a column to batches creates it again.
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

GRANT SELECT ON request_states, batch_states TO lowtide_api, lowtide_worker, lowtide_operator;
"""

SCHEMA = (
    REVISION,
    TENANTS,
    FILES,
    BATCHES,
    QUEUE,
    SEARCH,
    WORKERS,
    DEAD_LETTERS,
    DEAD_LETTER_CODES,
    EVENTS,
    SCHEDULER,
    LAST_SEEN,
    AUDIT,
    SESSIONS,
    AUTHENTICATION,
    ADMISSION,
    REQUEST_STATES,
    VIEWS,
)


def upgrade() -> None:
    """Apply."""
    for role in ROLES:
        op.execute(
            f"DO $$ BEGIN CREATE ROLE {role} LOGIN; "
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
    for script in SCHEMA:
        op.execute(script)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

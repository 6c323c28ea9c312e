"""Fleets: lanes of the queue by fleet and pool, and the requests of a batch by fleet."""

from __future__ import annotations

from alembic import op

from lowtide.database.migrations.isolation import isolated
from lowtide.database.migrations.views import BATCH_STATES, GRANTS

revision = "0003"
down_revision = "0002"

# With a constant default, a new column is added without writing the table again.
_FLEET = "ADD COLUMN fleet text NOT NULL DEFAULT 'default'"
FLEETS = """
-- Every fleet that is declared or has had a worker. `spec` mirrors the declaration; that of a fleet
-- that is no longer declared is NULL.
CREATE TABLE fleets (
  name text PRIMARY KEY,
  spec jsonb,
  updated_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO fleets (name) VALUES ('default');
GRANT SELECT ON fleets TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE ON fleets TO lowtide_worker;
"""
# The lane leads each index: one fleet's requests cost another's claims and counts nothing.
LANES = f"""
ALTER TABLE queue {_FLEET};
DROP INDEX queue_claim;
CREATE INDEX queue_claim ON queue (fleet, pool, batch_id, available_at, line);

ALTER TABLE claims {_FLEET};
DROP INDEX claims_of_pool;
CREATE INDEX claims_of_lane ON claims (fleet, pool, tenant_id);

ALTER TABLE workers {_FLEET};
GRANT SELECT (fleet) ON workers TO lowtide_autoscaler;

-- A lease is of one fleet. What no lease has counted is under one that stands for its fleet.
ALTER TABLE tallies {_FLEET};
CREATE FUNCTION lease_of_fleet(fleet text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE fleet WHEN 'default' THEN '00000000-0000-0000-0000-000000000000'::uuid
    ELSE md5(fleet)::uuid END
$$;

ALTER TABLE service_rates {_FLEET},
  DROP CONSTRAINT service_rates_pkey, ADD PRIMARY KEY (fleet, pool, model);
ALTER TABLE wanted_replicas {_FLEET},
  DROP CONSTRAINT wanted_replicas_pkey, ADD PRIMARY KEY (fleet, pool);
ALTER TABLE paused_pools {_FLEET},
  DROP CONSTRAINT paused_pools_pkey, ADD PRIMARY KEY (fleet, pool);
GRANT SELECT (fleet) ON paused_pools TO lowtide_api, lowtide_autoscaler;
ALTER TABLE pool_samples {_FLEET},
  DROP CONSTRAINT pool_samples_pkey, ADD PRIMARY KEY (at, fleet, pool);
ALTER TABLE sampled_work {_FLEET},
  DROP CONSTRAINT sampled_work_pkey, ADD PRIMARY KEY (batch_id, fleet, pool);
"""
BATCH_FLEETS = f"""
-- The fleet that runs a batch. It is NULL for one that several fleets run, which has the fleets of
-- its file's models, in their order, and its requests by fleet in batch_fleets: `lines` in all, of
-- which `split` are split. The model of a part is NULL if it has several.
ALTER TABLE batches ADD COLUMN fleet text DEFAULT 'default', ADD COLUMN fleet_of_model text[];
CREATE TABLE batch_fleets (
  batch_id uuid NOT NULL,
  fleet text NOT NULL,
  tenant_id uuid NOT NULL,
  model text,
  lines integer NOT NULL,
  split integer NOT NULL DEFAULT 0,
  PRIMARY KEY (batch_id, fleet)
);
{isolated("batch_fleets")}
-- The owner runs open_work(), and FORCE binds the owner too.
CREATE POLICY owner ON batch_fleets FOR SELECT TO CURRENT_USER USING (true);
CREATE POLICY owner ON segments FOR SELECT TO CURRENT_USER USING (true);
GRANT SELECT, INSERT ON batch_fleets TO lowtide_api, lowtide_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON batch_fleets TO lowtide_worker;

-- The requests of a file by model, as a list of [model, requests], if it mixes models.
ALTER TABLE files ADD COLUMN models jsonb;

-- The requests of each batch by fleet. Read it by batch_id.
CREATE VIEW batch_parts WITH (security_invoker = true) AS
SELECT b.id AS batch_id, b.fleet, b.model,
  CASE WHEN b.status = 'validating'
    THEN coalesce((SELECT f.lines FROM files f WHERE f.id = b.input_file_id), 0)
    ELSE b.total END AS lines,
  CASE WHEN b.status = 'validating' THEN 0 ELSE b.total - (
    SELECT coalesce(sum(s.lines), 0)::integer FROM segments s
    WHERE s.batch_id = b.id AND s.split_at IS NULL) END AS split
FROM batches b WHERE b.fleet IS NOT NULL
UNION ALL
SELECT batch_id, fleet, model, lines, split FROM batch_fleets;
GRANT SELECT ON batch_parts TO lowtide_api, lowtide_worker, lowtide_operator;
"""  # noqa: S608
FUNCTIONS = """
DROP FUNCTION open_work(), living_workers();
-- The end of a batch depends on the work of all tenants: these functions return how much there is,
-- but not whose. A tenant is a number that is good for one call, with its weight and its limit.
CREATE FUNCTION open_work() RETURNS TABLE (
  fleet text, deadline timestamptz, model text, lines bigint, ended bigint, retried bigint,
  running_seconds double precision, sharer bigint, weight integer, max_running integer,
  at_risk boolean, pinned boolean, last_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT p.fleet, b.deadline, p.model, greatest(0, p.lines - t.ended),
    t.ended, t.retried, t.running_seconds, dense_rank() OVER (ORDER BY b.tenant_id), n.weight,
    n.max_running_lines, b.at_risk, b.start_pool = 'dedicated', (
      SELECT max(q.last_at) FROM unnest(ARRAY['spot', 'dedicated']) AS l (pool)
      CROSS JOIN LATERAL (
        SELECT available_at AS last_at FROM queue
        WHERE fleet = p.fleet AND pool = l.pool AND batch_id = b.id
        ORDER BY available_at DESC, line DESC LIMIT 1) q)
  FROM batches b
  JOIN tenants n ON n.id = b.tenant_id
  CROSS JOIN LATERAL (SELECT * FROM batch_parts WHERE batch_id = b.id OFFSET 0) p
  CROSS JOIN LATERAL (
    SELECT coalesce(sum(completed + failed), 0) AS ended, coalesce(sum(retried), 0) AS retried,
      coalesce(sum(running_seconds), 0) AS running_seconds
    FROM tallies WHERE batch_id = b.id AND fleet = p.fleet) t
  WHERE b.status IN ('validating', 'in_progress') AND b.drained_at IS NULL AND NOT b.expiring
$$;
-- Workers by the state of their engine: only with a closed breaker do they run requests.
CREATE FUNCTION living_workers() RETURNS TABLE (
  fleet text, pool text, ready bigint, away bigint, starting bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
  SELECT w.fleet, w.pool, count(*) FILTER (WHERE w.engine_state = 'closed'),
    count(*) FILTER (WHERE w.engine_state IN ('open', 'probing')),
    count(*) FILTER (WHERE w.engine_state = 'starting')
  FROM workers w WHERE w.expires_at > now() GROUP BY w.fleet, w.pool
$$;
REVOKE ALL ON FUNCTION open_work(), living_workers() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION open_work(), living_workers()
  TO lowtide_api, lowtide_worker, lowtide_operator;
"""
SCHEMA = (FLEETS, LANES, BATCH_FLEETS, FUNCTIONS)


def upgrade() -> None:
    """Apply."""
    op.execute("DROP VIEW batch_states")
    for script in SCHEMA:
        op.execute(script)
    op.execute(BATCH_STATES)
    op.execute(GRANTS)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError

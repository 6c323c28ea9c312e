"""Samples of the pools: one per minute, written by the tick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from lowtide.database.connections import begin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from lowtide.core.pools import FleetPool


@dataclass(frozen=True, slots=True)
class PoolLevel:
    """The level of a fleet's pool at a tick: requests that wait and run, and the replicas it wants."""

    queued: int
    running: int
    desired: int


# The last sample is read after the lock: the snapshot includes the last holder's write.
_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtextextended('pool samples', 0))")


_LAST = text("""
SELECT max(at) AS at, coalesce(date_trunc('minute', max(at)) < date_trunc('minute', now()), true)
  AS is_due
FROM pool_samples
""")


# Batches that are open, or have ended since the last sample: one that was open then is counted here
# for the last time, one that came and went in between is counted whole. All parts of the statement
# read `sampled_work` as the last sample left it.
SAMPLE = """
WITH given AS (
  SELECT * FROM json_to_recordset(cast(:levels AS json))
    AS g (fleet text, pool text, queued integer, running integer, desired integer)
), watched AS MATERIALIZED (
  SELECT id FROM batches
  WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
  UNION ALL
  SELECT id FROM batches WHERE status IN ('completed', 'failed', 'expired', 'cancelled')
    AND coalesce(completed_at, failed_at, expired_at, cancelled_at)
      > coalesce(cast(:last AS timestamptz), now())
), work AS MATERIALIZED (
  SELECT t.batch_id, t.fleet, t.pool, sum(t.completed + t.failed) AS done,
    sum(t.interrupted) AS interrupted, sum(t.replica_seconds) AS replica_seconds
  FROM (SELECT id FROM watched UNION SELECT batch_id FROM sampled_work) b
  CROSS JOIN LATERAL (
    SELECT batch_id, fleet, pool, completed, failed, interrupted, replica_seconds FROM tallies
    WHERE batch_id = b.id OFFSET 0) t
  GROUP BY t.batch_id, t.fleet, t.pool
), forgotten AS (
  DELETE FROM sampled_work s WHERE NOT EXISTS (SELECT FROM watched w WHERE w.id = s.batch_id)
), noted AS (
  INSERT INTO sampled_work AS s (batch_id, fleet, pool, done, interrupted, replica_seconds)
  SELECT w.* FROM work w WHERE w.batch_id IN (SELECT id FROM watched)
  ON CONFLICT (batch_id, fleet, pool) DO UPDATE SET done = excluded.done,
    interrupted = excluded.interrupted, replica_seconds = excluded.replica_seconds
  WHERE (s.done, s.interrupted, s.replica_seconds)
    IS DISTINCT FROM (excluded.done, excluded.interrupted, excluded.replica_seconds)
), grown AS (
  SELECT w.fleet, w.pool, sum(greatest(0, w.done - coalesce(s.done, 0))) AS done,
    sum(greatest(0, w.interrupted - coalesce(s.interrupted, 0))) AS interrupted,
    sum(greatest(0, w.replica_seconds - coalesce(s.replica_seconds, 0))) AS replica_seconds
  FROM work w LEFT JOIN sampled_work s
    ON s.batch_id = w.batch_id AND s.fleet = w.fleet AND s.pool = w.pool
  WHERE cast(:last AS timestamptz) IS NOT NULL
  GROUP BY w.fleet, w.pool
), oldest AS (
  SELECT given.fleet, given.pool, min(first.available_at) AS available_at
  FROM (SELECT id FROM batches WHERE status = 'in_progress' AND drained_at IS NULL) b
  CROSS JOIN LATERAL (SELECT fleet FROM batch_parts WHERE batch_id = b.id OFFSET 0) p
  JOIN given ON given.fleet = p.fleet
  CROSS JOIN LATERAL (
    SELECT q.available_at FROM queued_runs q
    WHERE q.fleet = given.fleet AND q.pool = given.pool AND q.batch_id = b.id
    ORDER BY q.available_at, q.line LIMIT 1) first
  GROUP BY given.fleet, given.pool
)
INSERT INTO pool_samples (at, fleet, pool, queued, running, oldest_age, desired, live, seconds, done,
  interrupted, replica_seconds)
SELECT now(), g.fleet, g.pool, g.queued, g.running,
  coalesce(greatest(0, extract(epoch FROM now() - o.available_at)), 0), g.desired,
  (SELECT count(*) FROM workers w
   WHERE w.fleet = g.fleet AND w.pool = g.pool AND w.expires_at > now()),
  coalesce(extract(epoch FROM now() - cast(:last AS timestamptz)), 0),
  coalesce(n.done, 0), coalesce(n.interrupted, 0), coalesce(n.replica_seconds, 0)
FROM given g LEFT JOIN grown n ON n.fleet = g.fleet AND n.pool = g.pool
LEFT JOIN oldest o ON o.fleet = g.fleet AND o.pool = g.pool
"""


_SAMPLE = text(SAMPLE)


TRIM = """
DELETE FROM pool_samples WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM pool_samples WHERE at < now() - make_interval(secs => :kept)
  ORDER BY at LIMIT :limit))
"""


_TRIM = text(TRIM)


_TRIM_LIMIT = 500


class SampleRecorder:
    """Record one sample of each fleet's pool per minute."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, levels: Mapping[FleetPool, PoolLevel], *, retention: float) -> bool:
        """Take this minute's sample unless it exists; return whether it was taken.

        Deletes some of the samples that are older than `retention` seconds.
        """
        rows = [
            {
                "fleet": place.fleet,
                "pool": place.pool.value,
                "queued": level.queued,
                "running": level.running,
                "desired": level.desired,
            }
            for place, level in levels.items()
        ]
        with begin(self._engine) as connection:
            if not connection.execute(_LOCK).scalar_one():
                return False
            last = connection.execute(_LAST).one()
            if not last.is_due:
                return False
            parameters = {"levels": msgspec.json.encode(rows).decode(), "last": last.at}
            connection.execute(_SAMPLE, parameters)
            connection.execute(_TRIM, {"kept": retention, "limit": _TRIM_LIMIT})
        return True

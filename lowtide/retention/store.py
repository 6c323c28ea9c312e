"""The end of batches' data and records, each statement in a bounded set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from lowtide.core.ids import BatchId, TenantId
from lowtide.database.connections import begin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from lowtide.retention.partitions import Range


_IS_FINAL: Final = "status IN ('completed', 'failed', 'expired', 'cancelled')"
_END: Final = "coalesce(completed_at, failed_at, expired_at, cancelled_at)"
_COUNTS: Final = (
    "completed", "failed", "dead_lettered", "interrupted", "retried", "escalated", "input_tokens",
    "output_tokens", "replica_seconds", "running_seconds", "cached_tokens", "reasoning_tokens",
)  # fmt: skip

# One row per fleet and pool remains of those that the leases of a batch had.
FOLD = f"""
WITH closed AS MATERIALIZED (
  SELECT id FROM batches WHERE NOT tallies_folded AND {_IS_FINAL}
  ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM tallies WHERE batch_id = ANY(ARRAY(SELECT id FROM closed)) RETURNING *
), folded AS (
  INSERT INTO tallies (batch_id, fleet, pool, lease_id, tenant_id, {", ".join(_COUNTS)})
  SELECT batch_id, fleet, pool, lease_of_fleet(fleet), tenant_id, {", ".join(f"sum({count})" for count in _COUNTS)}
  FROM gone GROUP BY batch_id, fleet, pool, tenant_id
)
UPDATE batches SET tallies_folded = true WHERE id = ANY(ARRAY(SELECT id FROM closed))
"""  # noqa: S608
# Batches with a retention of their own, and those of each tenant, oldest end first. Times without a
# zone keep the planner from the index of all ended batches, which begins with those that have none.
DUE = f"""
SELECT id, due_at FROM (
  (SELECT id, (({_END} AT TIME ZONE 'UTC') + make_interval(secs => output_expires_after))
      AT TIME ZONE 'UTC' AS due_at
    FROM batches
    WHERE data_ended_at IS NULL AND output_expires_after IS NOT NULL AND {_IS_FINAL}
      AND ({_END} AT TIME ZONE 'UTC') + make_interval(secs => output_expires_after)
        <= now() AT TIME ZONE 'UTC'
    ORDER BY ({_END} AT TIME ZONE 'UTC') + make_interval(secs => output_expires_after) LIMIT :limit)
  UNION ALL
  SELECT b.* FROM tenants t CROSS JOIN LATERAL (
    SELECT id, {_END} + make_interval(secs => coalesce(t.batch_retention, :retention)) AS due_at
    FROM batches
    WHERE tenant_id = t.id AND data_ended_at IS NULL AND output_expires_after IS NULL AND {_IS_FINAL}
      AND {_END} AT TIME ZONE 'UTC' <= (
        now() - make_interval(secs => coalesce(t.batch_retention, :retention))) AT TIME ZONE 'UTC'
    ORDER BY {_END} AT TIME ZONE 'UTC' LIMIT :limit) b
) due LIMIT :limit
"""  # noqa: S608
# The answers in the files end too, encrypted ones with their key at once; an index of custom_ids that is not made yet never will be.
END = """
WITH ended AS (
  UPDATE batches SET data_ended_at = now() WHERE id = ANY(ARRAY(
    SELECT id FROM batches WHERE id = ANY(cast(:batches AS uuid[])) AND data_ended_at IS NULL
    FOR NO KEY UPDATE SKIP LOCKED))
  RETURNING id, output_file_id, error_file_id
), forgotten AS (
  DELETE FROM search_backlog WHERE batch_id = ANY(ARRAY(SELECT id FROM ended))
), destroyed AS (
  DELETE FROM data_keys WHERE id = ANY(ARRAY(SELECT id FROM ended))
), expired AS (
  UPDATE files SET expires_at = now() WHERE coalesce(expires_at > now(), true) AND id = ANY(ARRAY(
    SELECT output_file_id FROM ended UNION ALL SELECT error_file_id FROM ended))
)
SELECT count(*) FROM ended
"""
# Batches whose partitions are gone.
GONE = """
SELECT b.id FROM unnest(cast(:lows AS uuid[]), cast(:highs AS uuid[])) AS gap (low, high)
CROSS JOIN LATERAL (
  SELECT id FROM batches WHERE data_ended_at IS NOT NULL AND NOT data_deleted
    AND id >= gap.low AND id < gap.high ORDER BY id LIMIT :limit) b LIMIT :limit
"""
_NOTE_DELETED = text("""
UPDATE batches SET data_deleted = true WHERE id = ANY(ARRAY(
  SELECT id FROM batches WHERE id = ANY(cast(:batches AS uuid[])) AND data_ended_at IS NOT NULL
    AND NOT data_deleted FOR NO KEY UPDATE SKIP LOCKED))
""")
# Batches that wait in vain for the others of their day.
OVERDUE = """
SELECT id, tenant_id FROM batches WHERE data_ended_at IS NOT NULL AND NOT data_deleted
  AND data_ended_at < now() - make_interval(secs => :patience) ORDER BY id LIMIT :limit
"""
DELETE_REQUESTS = """
WITH page AS MATERIALIZED (
  SELECT line, custom_id FROM requests WHERE batch_id = :batch AND line > :after
  ORDER BY line LIMIT :limit
), named AS (
  DELETE FROM custom_ids WHERE tenant_id = :tenant AND batch_id = :batch
    AND custom_id = ANY(ARRAY(SELECT custom_id FROM page))
), ended AS (
  DELETE FROM results WHERE batch_id = :batch AND line = ANY(ARRAY(SELECT line FROM page))
), buried AS (
  DELETE FROM dead_letters WHERE batch_id = :batch AND line = ANY(ARRAY(SELECT line FROM page))
), gone AS (
  DELETE FROM requests WHERE batch_id = :batch AND line = ANY(ARRAY(SELECT line FROM page))
)
SELECT max(line) FROM page
"""
DELETE_EVENTS = """
DELETE FROM request_events WHERE batch_id = :batch AND id = ANY(ARRAY(
  SELECT id FROM request_events WHERE batch_id = :batch AND id > :after ORDER BY id LIMIT :limit))
RETURNING id
"""
DELETE_RECORDS = f"""
WITH old AS MATERIALIZED (
  SELECT id FROM batches WHERE data_deleted AND {_IS_FINAL}
    AND {_END} <= now() - make_interval(secs => :retention)
  ORDER BY {_END} LIMIT :limit FOR UPDATE SKIP LOCKED
), tallied AS (
  DELETE FROM tallies WHERE batch_id = ANY(ARRAY(SELECT id FROM old))
), named AS (
  DELETE FROM batch_terms WHERE batch_id = ANY(ARRAY(SELECT id FROM old))
), cut AS (
  DELETE FROM segments WHERE batch_id = ANY(ARRAY(SELECT id FROM old))
), placed AS (
  DELETE FROM batch_fleets WHERE batch_id = ANY(ARRAY(SELECT id FROM old))
)
DELETE FROM batches WHERE id = ANY(ARRAY(SELECT id FROM old))
"""  # noqa: S608
_OLDEST_ENDED = text("""
SELECT count(*) AS batches, min(data_ended_at) AS since FROM batches
WHERE data_ended_at IS NOT NULL AND NOT data_deleted
""")
_FOLD, _DUE, _END_DATA, _GONE, _OVERDUE = map(text, (FOLD, DUE, END, GONE, OVERDUE))
_DELETE_REQUESTS, _DELETE_EVENTS = text(DELETE_REQUESTS), text(DELETE_EVENTS)
_DELETE_RECORDS = text(DELETE_RECORDS)
# This month's is what budgets are measured by.
DELETE_USAGE = """
DELETE FROM usage_days WHERE ctid = ANY(ARRAY(
  SELECT u.ctid FROM tenants t CROSS JOIN LATERAL (
    SELECT ctid FROM usage_days WHERE tenant_id = t.id
      AND day < date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(secs => :retention)
    ORDER BY day LIMIT :limit) u
  LIMIT :limit))
"""
_DELETE_USAGE = text(DELETE_USAGE)
# Workers share the rows of a day while it lasts; every claim of a tenant with a quota sums the month.
FOLD_USAGE = """
WITH shares AS (
  DELETE FROM usage_days WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM usage_days
    WHERE shard > 0 AND day < (now() AT TIME ZONE 'UTC')::date - 1 ORDER BY day LIMIT :limit))
  RETURNING *
), folded AS (
  INSERT INTO usage_days AS u (tenant_id, day, currency, pool, shard, requests, input_tokens,
    output_tokens, cost, dedicated_cost)
  SELECT tenant_id, day, currency, pool, 0, sum(requests), sum(input_tokens), sum(output_tokens),
    sum(cost), sum(dedicated_cost)
  FROM shares GROUP BY tenant_id, day, currency, pool ORDER BY tenant_id, day, currency, pool
  ON CONFLICT (tenant_id, day, currency, pool, shard) DO UPDATE SET
    requests = u.requests + excluded.requests,
    input_tokens = u.input_tokens + excluded.input_tokens,
    output_tokens = u.output_tokens + excluded.output_tokens, cost = u.cost + excluded.cost,
    dedicated_cost = u.dedicated_cost + excluded.dedicated_cost
)
SELECT count(*) FROM shares
"""
_FOLD_USAGE = text(FOLD_USAGE)
_NOW = text("SELECT now()")


@dataclass(frozen=True, slots=True)
class Backlog:
    """Batches past retention whose data is still stored, and for how many seconds at most."""

    batches: int
    seconds: float


class RetentionStore:
    """End the data of batches, and delete it and their records; all safe to repeat."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def fold(self, limit: int) -> int:
        """Fold the tallies of up to `limit` closed batches; return how many."""
        with begin(self._engine) as connection:
            return connection.execute(_FOLD, {"limit": limit}).rowcount

    def end(self, retention: float, limit: int) -> int:
        """End the data of up to `limit` batches past retention; return how many."""
        with begin(self._engine) as connection:
            parameters = {"retention": retention, "limit": limit}
            due = [row.id for row in connection.execute(_DUE, parameters)]
            if not due:
                return 0
            return int(connection.execute(_END_DATA, {"batches": due}).scalar_one())

    def note_deleted(self, gaps: Sequence[Range], limit: int) -> int:
        """Record that up to `limit` batches without partitions have no data; return how many."""
        parameters = {
            "lows": [gap.low for gap in gaps],
            "highs": [gap.high for gap in gaps],
            "limit": limit,
        }
        with begin(self._engine) as connection:
            gone = connection.execute(_GONE, parameters).scalars().all()
            if not gone:
                return 0
            return connection.execute(_NOTE_DELETED, {"batches": gone}).rowcount

    def overdue(self, patience: float, limit: int) -> Sequence[tuple[BatchId, TenantId]]:
        """Return batches whose data ended more than `patience` seconds ago, and is still stored."""
        with begin(self._engine) as connection:
            rows = connection.execute(_OVERDUE, {"patience": patience, "limit": limit})
            return [(BatchId(row.id), TenantId(row.tenant_id)) for row in rows]

    def delete_requests(
        self, batch: BatchId, tenant: TenantId, after: int, limit: int
    ) -> int | None:
        """Delete up to `limit` requests with all that belongs to them; return the last line."""
        parameters = {"batch": batch, "tenant": tenant, "after": after, "limit": limit}
        with begin(self._engine) as connection:
            last: int | None = connection.execute(_DELETE_REQUESTS, parameters).scalar_one()
            return last

    def delete_events(self, batch: BatchId, after: int, limit: int) -> int | None:
        """Delete up to `limit` events of a batch; return the id of the last one."""
        parameters = {"batch": batch, "after": after, "limit": limit}
        with begin(self._engine) as connection:
            return max(connection.execute(_DELETE_EVENTS, parameters).scalars(), default=None)

    def delete_records(self, retention: float, limit: int) -> int:
        """Delete up to `limit` batches that ended `retention` seconds ago; return how many."""
        parameters = {"retention": retention, "limit": limit}
        with begin(self._engine) as connection:
            return connection.execute(_DELETE_RECORDS, parameters).rowcount

    def delete_usage(self, retention: float, limit: int) -> int:
        """Delete up to `limit` rows of tenants' usage, `retention` seconds before this month."""
        parameters = {"retention": retention, "limit": limit}
        with begin(self._engine) as connection:
            return connection.execute(_DELETE_USAGE, parameters).rowcount

    def fold_usage(self, limit: int) -> int:
        """Fold up to `limit` rows of days before yesterday into one a day; return how many."""
        with begin(self._engine) as connection:
            return int(connection.execute(_FOLD_USAGE, {"limit": limit}).scalar_one())

    def note_empty(self, batch: BatchId) -> None:
        """Record that a batch's data is deleted."""
        with begin(self._engine) as connection:
            connection.execute(_NOTE_DELETED, {"batches": [batch]})

    def backlog(self, retention: float, limit: int) -> Backlog:
        """Return what is past retention and still stored; counts up to `limit` of what is due."""
        with begin(self._engine) as connection:
            at: Any = connection.execute(_NOW).scalar_one()
            ended = connection.execute(_OLDEST_ENDED).one()
            parameters = {"retention": retention, "limit": limit}
            due = [row.due_at for row in connection.execute(_DUE, parameters)]
        since = [*due, *([] if ended.since is None else [ended.since])]
        oldest = min(since, default=at)
        return Backlog(ended.batches + len(due), (at - oldest).total_seconds())

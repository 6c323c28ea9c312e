"""The facts about one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.batches.forecast import read_workloads
from lowtide.batches.store import batch_of
from lowtide.batches.workload import NO_CAPACITY
from lowtide.core.errors import NotFound
from lowtide.core.ids import format_batch_id
from lowtide.core.pools import Depth, Pool
from lowtide.explain.model import NOTHING, Facts, Mark
from lowtide.planning.reasons import Reason
from lowtide.tenants.sign_in import reading_as

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sqlalchemy import Connection, Engine

    from lowtide.batches.model import Batch
    from lowtide.batches.workload import FleetCapacity, Workload
    from lowtide.core.ids import BatchId, TenantId


_BATCH = text("SELECT * FROM batch_states WHERE id = :batch")
_ACT_FOR = text("SELECT set_config('lowtide.tenant', :tenant, true)")
# The requests that wait for spot are those that have not ended and are nowhere else.
COUNTS = """
SELECT
  (SELECT coalesce(sum(q.size), 0)::bigint FROM batch_parts p JOIN queued_runs q ON q.fleet = p.fleet AND q.batch_id = p.batch_id
    WHERE p.batch_id = :batch AND q.pool = 'dedicated') AS dedicated,
  (SELECT coalesce(sum(q.size), 0)::bigint FROM batch_parts p JOIN queued_runs q ON q.fleet = p.fleet AND q.batch_id = p.batch_id
    WHERE p.batch_id = :batch AND q.pool IN ('spot', 'dedicated') AND q.available_at > now()) AS delayed,
  (SELECT coalesce(sum(size), 0)::bigint FROM claimed_runs
    WHERE batch_id = :batch AND pool = 'dedicated') AS running_dedicated,
  (SELECT min(claimed_at) FROM claimed_runs WHERE batch_id = :batch) AS claimed_at,
  (SELECT coalesce(sum(c.size), 0)::bigint FROM fleets f JOIN claimed_runs c ON c.fleet = f.name
    WHERE c.pool IN ('spot', 'dedicated') AND c.tenant_id = :tenant) AS tenant_running,
  running_limit() AS max_running,
  (SELECT json_build_array(quota, extract(epoch FROM until - now())) FROM exhausted_quotas
    WHERE tenant_id = :tenant AND until > now() ORDER BY until DESC LIMIT 1) AS used_up,
  (SELECT max(at) FROM wanted_replicas WHERE pool = 'dedicated') AS planned_at
"""
PART_COUNTS = """
SELECT
  (SELECT coalesce(sum(size), 0)::bigint FROM queued_runs WHERE fleet = :fleet AND pool = 'dedicated' AND batch_id = :batch)
    AS dedicated,
  coalesce(sum(size) FILTER (WHERE pool = 'spot'), 0)::bigint AS running_spot,
  coalesce(sum(size) FILTER (WHERE pool = 'dedicated'), 0)::bigint AS running_dedicated
FROM claimed_runs WHERE batch_id = :batch AND fleet = :fleet
"""
# A few lines of all: the first and the last ones, with which claims begin, and some between.
STARTS = """
SELECT min(r.started_at) AS first, extract(epoch FROM avg(r.started_at - b.in_progress_at)) AS waited
FROM unnest(cast(:lines AS integer[])) AS given (line)
CROSS JOIN LATERAL (
  SELECT started_at FROM results WHERE batch_id = :batch AND line = given.line OFFSET 0) r
CROSS JOIN (SELECT in_progress_at FROM batches WHERE id = :batch) b
"""
MARKS = """
SELECT kind, reason, sum(lines) AS lines, min(at) AS since FROM (
  SELECT kind, reason, lines, at FROM request_events
  WHERE batch_id = :batch AND kind IN ('escalated', 'revoked', 'returned', 'at_risk', 'on_track')
  ORDER BY id DESC LIMIT 1000) e
GROUP BY kind, reason ORDER BY since
"""
EARLIER = """
SELECT completed + failed AS lines,
  extract(epoch FROM finalizing_at - in_progress_at)::double precision AS seconds
FROM batches
WHERE tenant_id = :tenant AND user_id = :user AND endpoint = :endpoint AND model = :model
  AND status = 'completed' AND id < :batch
ORDER BY id DESC LIMIT 10
"""
_COUNTS, _PART_COUNTS, _STARTS = text(COUNTS), text(PART_COUNTS), text(STARTS)
_MARKS, _EARLIER = text(MARKS), text(EARLIER)
_EDGE, _BETWEEN = 50, 100


def sample_of(total: int) -> list[int]:
    """Return at most 200 lines of a batch: its first, its last, and evenly spaced ones."""
    step = -(-total // _BETWEEN) or 1
    first = range(1, min(total, _EDGE) + 1)
    last = range(max(1, total - _EDGE + 1), total + 1)
    return sorted({*first, *last, *range(1, total + 1, step)})


class FactStore:
    """Reads the facts about batches."""

    def __init__(self, engine: Engine, capacities: Mapping[str, FleetCapacity]) -> None:
        self._engine = engine
        self._capacities = capacities

    def read(self, scope: TenantId | None, batch: BatchId) -> Facts:
        """Return the facts about a batch of the tenant `scope`, or of any; raises NotFound."""
        with reading_as(self._engine, scope) as connection:
            row = connection.execute(_BATCH, {"batch": batch}).one_or_none()
            if row is None:
                raise NotFound(f"Batch {format_batch_id(batch)!r} not found: check the id.")
            record = batch_of(row)
            record.require_data()
            # An operator's transaction acts for no tenant until now.
            connection.execute(_ACT_FOR, {"tenant": str(row.tenant_id)})
            return self._read(connection, record, row.running_seconds)

    def _read(self, connection: Connection, batch: Batch, running_seconds: float) -> Facts:
        counts = connection.execute(_COUNTS, {"batch": batch.id, "tenant": batch.tenant}).one()
        lines = {"batch": batch.id, "lines": sample_of(batch.total)}
        starts = connection.execute(_STARTS, lines).one()
        workloads = read_workloads(connection)
        fleet = workloads.last_fleet(batch, self._capacities)
        depths, elsewhere = _depths(batch, counts), NOTHING
        fleets = workloads.fleets_of(batch)
        if batch.fleet is None and fleets:
            parameters = {"batch": batch.id, "fleet": fleet}
            part = connection.execute(_PART_COUNTS, parameters).one()
            depths, elsewhere = _parted(depths, batch, workloads.of(fleet), part)
        is_only = len(self._capacities) == 1 and fleet in self._capacities
        return Facts(
            batch=batch,
            workload=workloads.of(fleet),
            fleet=self._capacities.get(fleet, NO_CAPACITY),
            fleet_name=fleet if fleets and not is_only else None,
            depths=depths,
            elsewhere=elsewhere,
            delayed=counts.delayed,
            limit=counts.max_running,
            tenant_running=counts.tenant_running,
            used_up=None if counts.used_up is None else tuple(counts.used_up),
            running_seconds=running_seconds,
            waited=None if starts.waited is None else max(0.0, float(starts.waited)),
            first_start=min(
                (at for at in (starts.first, counts.claimed_at) if at is not None), default=None
            ),
            planned_at=counts.planned_at,
            marks=tuple(
                Mark(
                    row.kind,
                    None if row.reason is None else Reason(row.reason),
                    row.lines,
                    row.since,
                )
                for row in connection.execute(_MARKS, {"batch": batch.id})
            ),
            earlier=_earlier(connection, batch),
        )


def _depths(batch: Batch, counts: Any) -> dict[Pool, Depth]:
    outcomes = batch.outcomes
    # Requests of segments that are not split yet are in no table.
    dedicated = outcomes.queued if batch.pool is Pool.DEDICATED else counts.dedicated
    spot = Depth(
        max(0, outcomes.queued - dedicated),
        max(0, outcomes.running - counts.running_dedicated),
    )
    return {Pool.SPOT: spot, Pool.DEDICATED: Depth(dedicated, counts.running_dedicated)}


def _parted(
    whole: Mapping[Pool, Depth], batch: Batch, workload: Workload, part: Any
) -> tuple[dict[Pool, Depth], Depth]:
    """Return a batch's requests in the pools of one fleet, and those in all others."""
    queued = max(0, workload.work_of(batch).lines - part.running_spot - part.running_dedicated)
    dedicated = queued if batch.pool is Pool.DEDICATED else min(part.dedicated, queued)
    depths = {
        Pool.SPOT: Depth(queued - dedicated, part.running_spot),
        Pool.DEDICATED: Depth(dedicated, part.running_dedicated),
    }
    here = depths.values()
    return depths, Depth(
        max(0, sum(each.queued for each in whole.values()) - sum(each.queued for each in here)),
        max(0, sum(each.running for each in whole.values()) - sum(each.running for each in here)),
    )


def _earlier(connection: Connection, batch: Batch) -> tuple[float, ...]:
    if batch.model is None:
        return ()
    parameters = {
        "tenant": batch.tenant,
        "user": batch.user,
        "endpoint": batch.endpoint,
        "model": batch.model,
        "batch": batch.id,
    }
    rows = connection.execute(_EARLIER, parameters).all()
    return tuple(row.lines / row.seconds for row in rows if row.lines and row.seconds)

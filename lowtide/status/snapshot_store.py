"""Queries for snapshots of the whole system."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from lowtide.batches.request_store import WITH_DATA
from lowtide.batches.store import batch_of
from lowtide.core.errors import Unavailable
from lowtide.core.ids import BatchId, TenantId
from lowtide.core.pools import DEFAULT_FLEET, Depth, Pool
from lowtide.database.connections import begin
from lowtide.engines.breaker import BreakerState
from lowtide.scheduler.pauses import read_pauses
from lowtide.scheduler.plan import BATCHES
from lowtide.status.last_seen import Component, LastSeen
from lowtide.status.snapshot import (
    MAX_COUNTED,
    MAX_LISTED,
    MAX_RECENT,
    MAX_RISKY,
    Backlog,
    EngineUse,
    FleetLoad,
    LiveWorkers,
    LostEngine,
    RiskyBatch,
    SystemSnapshot,
    TenantLoad,
    Totals,
)
from lowtide.tenants.quotas import read_shares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.core.pools import PoolPause


# One statement over all tenants: the count stops at the limit, not at a limit for each tenant.
LISTED_LETTERS = f"""
SELECT count(*) FROM (
  SELECT 1 FROM tenants t CROSS JOIN LATERAL (
    SELECT 1 FROM dead_letters WHERE tenant_id = t.id AND state = 'open' AND {WITH_DATA} OFFSET 0) d
  LIMIT {MAX_LISTED}) l
"""  # noqa: S608
# The status lists repeat the predicates of the indexes batches_active and batches_ended.
TOTALS = f"""
SELECT now() AS at, (SELECT count(*) FROM batches) AS batches, active.*, ended.*,
  ({LISTED_LETTERS}) AS letters,
  (SELECT coalesce(json_agg(json_build_array(f.name, f.spec -> 'models', w.replicas) ORDER BY f.name), '[]')
   FROM fleets f LEFT JOIN wanted_replicas w ON w.fleet = f.name AND w.pool = 'dedicated')::text AS fleets,
  (SELECT max(at) FROM wanted_replicas) AS ticked_at,
  current_setting('server_version') AS server_version,
  (SELECT min(version_num) FROM alembic_version) AS schema_version
FROM (
  SELECT count(*) AS in_progress, count(*) FILTER (WHERE at_risk) AS at_risk,
    count(*) FILTER (WHERE status = 'validating' AND NOT importing) AS unsplit,
    min(coalesce(imported_at, created_at)) FILTER (WHERE status = 'validating' AND NOT importing)
      AS unsplit_since,
    count(*) FILTER (WHERE drained_at IS NOT NULL) AS unfinalized,
    min(drained_at) AS unfinalized_since
  FROM (SELECT *, coalesce(transfer_until > now(), false) AS importing FROM batches) b
  WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
) active, (
  SELECT count(*) FILTER (WHERE status = 'completed') AS completed,
    count(*) FILTER (WHERE status IN ('failed', 'expired')) AS failed,
    count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
    count(*) FILTER (WHERE status = 'expired' OR status = 'completed' AND completed_at > deadline)
      AS missed,
    count(*) FILTER (WHERE status = 'completed' AND total > 0 AND completed = 0) AS all_failed
  FROM batches WHERE status IN ('completed', 'failed', 'expired', 'cancelled')
    AND coalesce(completed_at, failed_at, expired_at, cancelled_at) > now() - interval '24 hours'
) ended
"""  # noqa: S608
RECENT = """
SELECT s.*, (SELECT name FROM tenants WHERE id = s.tenant_id) AS tenant_name
FROM batch_states s ORDER BY s.id DESC LIMIT :limit
"""
# A cancelled batch's requests may run on for a while. Held ones wait for no worker, so that they have
# no age, and what a quota may have held has none of before its period. The row of a tenant without a fleet is the one
# of all its fleets: a batch of several is one batch.
TENANTS = f"""
SELECT t.id, t.name, l.fleet, count(DISTINCT b.id) AS batches,
  count(DISTINCT b.id) FILTER (WHERE b.at_risk) AS at_risk,
  sum(l.spot)::bigint AS spot, sum(l.dedicated)::bigint AS dedicated,
  sum(l.running_spot)::bigint AS running_spot,
  sum(l.running_dedicated)::bigint AS running_dedicated,
  min(greatest(f.spot, t.since)) FILTER (WHERE NOT l.held) AS oldest_spot,
  min(greatest(f.dedicated, t.since)) FILTER (WHERE NOT l.held) AS oldest_dedicated
FROM ({BATCHES}
UNION ALL
SELECT b.id, p.fleet, b.deadline, NULL, 0, 0, c.running_spot, c.running_dedicated, 0, 0, 0, false,
  b.tenant_id, b.priority, b.barrier, false
FROM batches b
CROSS JOIN LATERAL (SELECT fleet FROM batch_parts WHERE batch_id = b.id OFFSET 0) p
CROSS JOIN LATERAL (
  SELECT coalesce(sum(size) FILTER (WHERE pool = 'spot'), 0) AS running_spot,
    coalesce(sum(size) FILTER (WHERE pool = 'dedicated'), 0) AS running_dedicated
  FROM claimed_runs WHERE batch_id = b.id AND fleet = p.fleet) c
WHERE b.status = 'cancelling' AND b.drained_at IS NULL
) l JOIN batches b ON b.id = l.id JOIN (
  SELECT id, name, CASE
    WHEN max_tokens_per_day IS NOT NULL THEN date_trunc('day', now(), 'UTC')
    WHEN max_spend_per_month IS NOT NULL THEN date_trunc('month', now(), 'UTC') END AS since
  FROM tenants) t ON t.id = b.tenant_id
CROSS JOIN LATERAL (SELECT
  (SELECT available_at FROM queued_runs WHERE fleet = l.fleet AND pool = 'spot' AND batch_id = b.id
   ORDER BY available_at LIMIT 1) AS spot,
  (SELECT available_at FROM queued_runs WHERE fleet = l.fleet AND pool = 'dedicated' AND batch_id = b.id
   ORDER BY available_at LIMIT 1) AS dedicated) f
GROUP BY GROUPING SETS ((t.id, t.name), (t.id, t.name, l.fleet)) ORDER BY t.name
"""  # noqa: S608 - two constants of ours
# Nobody on call can help a batch whose tenant has used up its quota.
RISKY = """
SELECT b.id, t.name, b.deadline FROM batches b JOIN tenants t ON t.id = b.tenant_id
WHERE b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling') AND b.at_risk
  AND NOT EXISTS (SELECT FROM exhausted_quotas WHERE tenant_id = b.tenant_id AND until > now())
ORDER BY b.deadline LIMIT :most
"""
# Telemetry comes from engines: a number that cannot be counts as unknown, NaN included.
WORKERS = """
SELECT fleet, pool, count(*) AS workers, max(heartbeat_at) AS heartbeat_at,
  coalesce(json_agg(
    json_build_array(name, pool, engine_state, engine_reason, engine_since, fleet) ORDER BY name)
    FILTER (WHERE engine_state <> 'closed'), '[]')::text AS lost_engines,
  sum(input_token_rate) FILTER (WHERE input_token_rate BETWEEN 0 AND 1e12) AS input_rate,
  sum(output_token_rate) FILTER (WHERE output_token_rate BETWEEN 0 AND 1e12) AS output_rate,
  count(*) FILTER (WHERE num_nonnulls(engine_running, engine_waiting, engine_kv_cache) > 0)
    AS reporting,
  sum(engine_running) FILTER (WHERE engine_running BETWEEN 0 AND 1000000000) AS running,
  sum(engine_waiting) FILTER (WHERE engine_waiting BETWEEN 0 AND 1000000000) AS waiting,
  max(engine_kv_cache) FILTER (WHERE engine_kv_cache BETWEEN 0 AND 1) AS kv_cache
FROM workers WHERE expires_at > now() GROUP BY GROUPING SETS ((pool), (fleet, pool))
"""
LAST_SEEN = "SELECT component, name, succeeded_at, failed_at, problem FROM last_seen"
# Ids are ordered by time.
EVENTS = """
SELECT (SELECT min(created_at) FROM audit_outbox) AS oldest_audit,
  (SELECT count(*) FROM (SELECT 1 FROM outbox LIMIT :most) o) AS events,
  (SELECT created_at FROM outbox ORDER BY id LIMIT 1) AS oldest
"""
LETTERS = f"""
SELECT t.name, l.letters FROM tenants t CROSS JOIN LATERAL (
  SELECT count(*) AS letters FROM (
    SELECT 1 FROM dead_letters WHERE tenant_id = t.id AND state = 'open' AND {WITH_DATA} LIMIT :most) d) l
WHERE l.letters > 0
"""  # noqa: S608

_Value = TypeVar("_Value")
_CHECK = text("SELECT 1")
_TOTALS, _RECENT, _TENANTS, _RISKY = map(text, (TOTALS, RECENT, TENANTS, RISKY))
_WORKERS, _LAST_SEEN, _EVENTS, _LETTERS = map(text, (WORKERS, LAST_SEEN, EVENTS, LETTERS))
_decode = msgspec.json.Decoder(list[tuple[str, str, str, str, str, str]]).decode
_decode_fleets = msgspec.json.Decoder(list[tuple[str, list[str] | None, int | None]]).decode


class SnapshotStore:
    """Queries for snapshots, as a role with access to every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def check(self) -> None:
        """Raise Unavailable if the database does not answer."""
        self._read(lambda connection: connection.execute(_CHECK).one())

    def read(self, *, for_metrics: bool = False) -> SystemSnapshot:
        """Return a snapshot; raises Unavailable.

        Only metrics need `risky`, `open_letters` and `quotas`, which are empty otherwise.
        """
        return self._read(lambda connection: _snapshot(connection, for_metrics=for_metrics))

    def _read(self, read: Callable[[Connection], _Value]) -> _Value:
        try:
            with begin(self._engine) as connection:
                return read(connection)
        except SQLAlchemyError as error:
            # The status pages must survive a missing schema and a refused password.
            raise Unavailable("The database responds, but queries fail.") from error


def _snapshot(connection: Connection, *, for_metrics: bool) -> SystemSnapshot:
    def rows(statement: Any, **parameters: int) -> Sequence[Any]:
        return connection.execute(statement, parameters).all()

    (now,) = rows(_TOTALS)
    (events,) = rows(_EVENTS, most=MAX_COUNTED)
    recent = rows(_RECENT, limit=MAX_RECENT)
    tenants, live_workers = rows(_TENANTS), rows(_WORKERS)
    pauses = read_pauses(connection)
    risky = rows(_RISKY, most=MAX_RISKY) if for_metrics else ()
    letters = rows(_LETTERS, most=MAX_COUNTED) if for_metrics else ()
    return SystemSnapshot(
        at=now.at,
        totals=_totals(now),
        recent=tuple(map(batch_of, recent)),
        names={TenantId(row.tenant_id): row.tenant_name for row in recent},
        tenants=_tenants(tenants, None),
        risky=tuple(RiskyBatch(row.name, BatchId(row.id), row.deadline) for row in risky),
        live_workers=_live_workers(live_workers, None),
        lost_engines=tuple(_lost_engines(live_workers)),
        last_seen={
            (Component(row.component), row.name): LastSeen(
                row.succeeded_at, row.failed_at, row.problem
            )
            for row in rows(_LAST_SEEN)
        },
        unsplit=Backlog(now.unsplit, now.unsplit_since),
        unfinalized=Backlog(now.unfinalized, now.unfinalized_since),
        events=Backlog(events.events, events.oldest),
        audit_events_since=events.oldest_audit,
        open_letters={row.name: row.letters for row in letters},
        quotas=tuple(read_shares(connection)) if for_metrics else (),
        letters=now.letters,
        pauses=pauses,
        fleets=_fleets(now.fleets, tenants, live_workers, pauses),
        ticked_at=now.ticked_at,
        server_version=now.server_version.split()[0],
        schema_version=now.schema_version or "none",
    )


def _totals(row: Any) -> Totals:
    return Totals(
        batches=row.batches,
        in_progress=row.in_progress,
        at_risk=row.at_risk,
        completed=row.completed,
        failed=row.failed,
        cancelled=row.cancelled,
        missed=row.missed,
        all_failed=row.all_failed,
    )


def _fleets(
    known: str,
    tenants: Sequence[Any],
    live_workers: Sequence[Any],
    pauses: Sequence[PoolPause],
) -> dict[str, FleetLoad]:
    rows = {name: (models, planned) for name, models, planned in _decode_fleets(known)}
    names = {name for name, (models, _) in rows.items() if models is not None}
    names |= {row.fleet for row in (*tenants, *live_workers) if row.fleet is not None}
    names |= {pause.fleet for pause in pauses}
    loads = {}
    for name in sorted(names or {DEFAULT_FLEET}):
        models, planned = rows.get(name, (None, None))
        loads[name] = FleetLoad(
            tuple(models or ()), _tenants(tenants, name), _live_workers(live_workers, name), planned
        )
    return loads


def _tenants(rows: Sequence[Any], fleet: str | None) -> tuple[TenantLoad, ...]:
    return tuple(_tenant(row) for row in rows if row.fleet == fleet)


def _live_workers(rows: Sequence[Any], fleet: str | None) -> dict[Pool, LiveWorkers]:
    return {
        Pool(row.pool): LiveWorkers(row.workers, row.heartbeat_at, _engine_use(row))
        for row in rows
        if row.fleet == fleet
    }


def _tenant(row: Any) -> TenantLoad:
    oldest = {Pool.SPOT: row.oldest_spot, Pool.DEDICATED: row.oldest_dedicated}
    return TenantLoad(
        TenantId(row.id),
        row.name,
        row.batches,
        row.at_risk,
        depths={
            Pool.SPOT: Depth(row.spot, row.running_spot),
            Pool.DEDICATED: Depth(row.dedicated, row.running_dedicated),
        },
        oldest={pool: at for pool, at in oldest.items() if at is not None},
    )


def _engine_use(row: Any) -> EngineUse:
    return EngineUse(
        row.input_rate, row.output_rate, row.reporting, row.running, row.waiting, row.kv_cache
    )


def _lost_engines(live_workers: Sequence[Any]) -> Iterator[LostEngine]:
    for row in live_workers:
        if row.fleet is not None:
            continue
        for name, pool, state, reason, since, fleet in _decode(row.lost_engines):
            yield LostEngine(
                name, Pool(pool), BreakerState(state), reason, datetime.fromisoformat(since), fleet
            )

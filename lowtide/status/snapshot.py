"""One reading of the whole system: queue, workers, batches, events and components."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from lowtide.batches.request_store import WITH_DATA
from lowtide.batches.store import batch_of
from lowtide.core.errors import Unavailable
from lowtide.core.ids import BatchId, TenantId
from lowtide.core.pools import Depth, FleetPool, Pool
from lowtide.database.connections import begin
from lowtide.engines.breaker import BreakerState
from lowtide.scheduler.pauses import read_pauses
from lowtide.scheduler.plan import BATCHES
from lowtide.status.last_seen import Component, LastSeen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.batches.model import Batch
    from lowtide.core.pools import PoolPause


@dataclass(frozen=True, slots=True)
class Backlog:
    """Things that wait for a step; the first has waited since `since`."""

    count: int = 0
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """Batches of all tenants; those that ended, of the last 24 hours.

    `failed` counts refused files and expired batches; `at_risk` is part of `in_progress`. Of the
    batches that ran, `missed` ended after their deadline, and no request of `all_failed` completed.
    """

    batches: int = 0
    in_progress: int = 0
    at_risk: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    missed: int = 0
    all_failed: int = 0


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """A tenant with open batches; `at_risk` of them are at risk.

    `oldest` are the times by pool at which the first queued request became claimable, or will after
    its retry delay; a pool without queued requests is missing.
    """

    tenant: TenantId
    name: str
    batches: int
    at_risk: int
    depths: Mapping[Pool, Depth]
    oldest: Mapping[Pool, datetime]

    def oldest_age(self, pool: Pool, at: datetime) -> float:
        """Return the seconds that the first request of a pool has waited; 0 while none waits."""
        return _age(self.oldest.get(pool), at)


@dataclass(frozen=True, slots=True)
class RiskyBatch:
    """A batch at risk of missing its deadline."""

    tenant: str
    batch: BatchId
    deadline: datetime


@dataclass(frozen=True, slots=True)
class EngineUse:
    """The use of a pool's engines, as its workers last reported it; None where none knows.

    `input_rate` and `output_rate` are tokens per second of all workers. `reporting` of them have an
    engine that reports its load: `running` and `waiting` are the requests in these engines, of all
    their clients, and `kv_cache` is the used share of the fullest KV cache.
    """

    input_rate: float | None = None
    output_rate: float | None = None
    reporting: int = 0
    running: int | None = None
    waiting: int | None = None
    kv_cache: float | None = None


@dataclass(frozen=True, slots=True)
class LiveWorkers:
    """A pool's workers with an unexpired lease, and the time of their last heartbeat."""

    workers: int
    heartbeat_at: datetime
    engines: EngineUse = EngineUse()


@dataclass(frozen=True, slots=True)
class LostEngine:
    """A worker whose engine breaker is not closed since `since`."""

    worker: str
    pool: Pool
    state: BreakerState
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class SystemSnapshot:
    """One reading; all times are the database's.

    `recent` are the newest batches, newest first, of the tenants in `names`. `risky` are the most
    urgent batches at risk. `unsplit` batches wait for their file to be split, `unfinalized` ones for
    their output files, `events` for the broker. `planned` is the number of dedicated replicas that
    the last tick planned, at `ticked_at`; None before the first. `fleet_workers` has the workers with
    an unexpired lease of every fleet's pools, `fleet_oldest` the times at which the first queued
    request of each became claimable, or will; without queued requests it is missing. `open_letters` are the dead letters
    by tenant that were neither requeued nor discarded, `letters` those of all tenants, counted up to
    MAX_LISTED. Other counts of letters and events stop at MAX_COUNTED.
    """

    at: datetime
    totals: Totals = field(default_factory=Totals)
    recent: tuple[Batch, ...] = ()
    names: Mapping[TenantId, str] = field(default_factory=dict)
    tenants: tuple[TenantLoad, ...] = ()
    risky: tuple[RiskyBatch, ...] = ()
    live_workers: Mapping[Pool, LiveWorkers] = field(default_factory=dict)
    fleet_workers: Mapping[FleetPool, int] = field(default_factory=dict)
    fleet_oldest: Mapping[FleetPool, datetime] = field(default_factory=dict)
    lost_engines: tuple[LostEngine, ...] = ()
    last_seen: Mapping[tuple[Component, str], LastSeen] = field(default_factory=dict)
    unsplit: Backlog = field(default_factory=Backlog)
    unfinalized: Backlog = field(default_factory=Backlog)
    events: Backlog = field(default_factory=Backlog)
    open_letters: Mapping[str, int] = field(default_factory=dict)
    letters: int = 0
    pauses: tuple[PoolPause, ...] = ()
    planned: int | None = None
    ticked_at: datetime | None = None
    server_version: str = ""
    schema_version: str = ""

    def pause(self, pool: Pool) -> PoolPause | None:
        """Return the pause of a pool, if there is one."""
        return next((pause for pause in self.pauses if pause.pool is pool), None)

    def engines(self, pool: Pool) -> EngineUse:
        """Return the use of a pool's engines."""
        return self.live_workers[pool].engines if pool in self.live_workers else EngineUse()

    def workers(self, pool: Pool) -> int:
        """Return the number of a pool's workers with an unexpired lease."""
        return self.live_workers[pool].workers if pool in self.live_workers else 0

    def depth(self, pool: Pool) -> Depth:
        """Return the queued and running requests of a pool."""
        depths = [tenant.depths[pool] for tenant in self.tenants]
        return Depth(sum(each.queued for each in depths), sum(each.running for each in depths))

    def oldest_age(self, pool: Pool) -> float:
        """Return the seconds that the first request of a pool has waited; 0 while none waits."""
        return max((tenant.oldest_age(pool, self.at) for tenant in self.tenants), default=0.0)

    def fleet_age(self, place: FleetPool) -> float:
        """Return the seconds that the first request of a fleet's pool has waited; 0 while none waits."""
        return _age(self.fleet_oldest.get(place), self.at)


def _age(since: datetime | None, at: datetime) -> float:
    return 0.0 if since is None else max((at - since).total_seconds(), 0.0)


MAX_COUNTED: Final = 10_000
"""Nobody needs exact numbers of letters and events above this."""
MAX_LISTED: Final = 1000
"""Enough to tell that many dead letters are open; the page of dead letters counts further."""
MAX_RISKY: Final = 50
MAX_RECENT: Final = 20

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
  (SELECT max(replicas) FROM wanted_replicas) AS planned,
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
# A row for each tenant, with the totals of its fleets, and one for each fleet, without a tenant. A
# cancelled batch's requests may run on for a while.
TENANTS = f"""
SELECT t.id, t.name, l.fleet, count(DISTINCT b.id) AS batches,
  count(DISTINCT b.id) FILTER (WHERE b.at_risk) AS at_risk,
  sum(l.spot)::bigint AS spot, sum(l.dedicated)::bigint AS dedicated,
  sum(l.running_spot)::bigint AS running_spot,
  sum(l.running_dedicated)::bigint AS running_dedicated,
  min(f.spot) AS oldest_spot, min(f.dedicated) AS oldest_dedicated
FROM ({BATCHES}
UNION ALL
SELECT b.id, p.fleet, b.deadline, NULL, 0, 0, c.running_spot, c.running_dedicated, 0, 0, 0, false
FROM batches b
CROSS JOIN LATERAL (SELECT fleet FROM batch_parts WHERE batch_id = b.id OFFSET 0) p
CROSS JOIN LATERAL (
  SELECT count(*) FILTER (WHERE pool = 'spot') AS running_spot,
    count(*) FILTER (WHERE pool = 'dedicated') AS running_dedicated
  FROM claims WHERE batch_id = b.id AND fleet = p.fleet) c
WHERE b.status = 'cancelling' AND b.drained_at IS NULL
) l JOIN batches b ON b.id = l.id JOIN tenants t ON t.id = b.tenant_id
CROSS JOIN LATERAL (SELECT
  (SELECT available_at FROM queue WHERE fleet = l.fleet AND pool = 'spot' AND batch_id = b.id
   ORDER BY available_at LIMIT 1) AS spot,
  (SELECT available_at FROM queue WHERE fleet = l.fleet AND pool = 'dedicated' AND batch_id = b.id
   ORDER BY available_at LIMIT 1) AS dedicated) f
GROUP BY GROUPING SETS ((t.id, t.name), (l.fleet)) ORDER BY t.name
"""  # noqa: S608 - two constants of ours
RISKY = """
SELECT b.id, t.name, b.deadline FROM batches b JOIN tenants t ON t.id = b.tenant_id
WHERE b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling') AND b.at_risk
ORDER BY b.deadline LIMIT :most
"""
# A row for each pool, with the totals of its fleets, and one for each fleet's pool. Telemetry comes
# from engines: a number that cannot be counts as unknown, NaN included.
WORKERS = """
SELECT f.name AS fleet, p.pool, count(w.id) AS workers, max(heartbeat_at) AS heartbeat_at,
  coalesce(json_agg(json_build_array(w.name, w.pool, engine_state, engine_reason, engine_since)
    ORDER BY w.name)
    FILTER (WHERE engine_state <> 'closed'), '[]')::text AS lost_engines,
  sum(input_token_rate) FILTER (WHERE input_token_rate BETWEEN 0 AND 1e12) AS input_rate,
  sum(output_token_rate) FILTER (WHERE output_token_rate BETWEEN 0 AND 1e12) AS output_rate,
  count(w.id) FILTER (WHERE num_nonnulls(engine_running, engine_waiting, engine_kv_cache) > 0)
    AS reporting,
  sum(engine_running) FILTER (WHERE engine_running BETWEEN 0 AND 1000000000) AS running,
  sum(engine_waiting) FILTER (WHERE engine_waiting BETWEEN 0 AND 1000000000) AS waiting,
  max(engine_kv_cache) FILTER (WHERE engine_kv_cache BETWEEN 0 AND 1) AS kv_cache
FROM fleets f CROSS JOIN unnest(cast(:pools AS text[])) AS p (pool)
LEFT JOIN workers w ON w.fleet = f.name AND w.pool = p.pool AND w.expires_at > now()
GROUP BY GROUPING SETS ((p.pool), (f.name, p.pool))
"""
LAST_SEEN = "SELECT component, name, succeeded_at, failed_at, problem FROM last_seen"
# Ids are ordered by time.
EVENTS = """
SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox LIMIT :most) o) AS events,
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
_decode = msgspec.json.Decoder(list[tuple[str, str, str, str, str]]).decode


class SnapshotStore:
    """Queries for snapshots, as a role with access to every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def check(self) -> None:
        """Raise Unavailable if the database does not answer."""
        self._read(lambda connection: connection.execute(_CHECK).one())

    def read(self, *, for_metrics: bool = False) -> SystemSnapshot:
        """Return a snapshot; raises Unavailable.

        Only metrics need `risky` and `open_letters`, which are empty otherwise.
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
    def rows(statement: Any, **parameters: object) -> Sequence[Any]:
        return connection.execute(statement, parameters).all()

    (now,) = rows(_TOTALS)
    (events,) = rows(_EVENTS, most=MAX_COUNTED)
    recent = rows(_RECENT, limit=MAX_RECENT)
    tenants = rows(_TENANTS)
    workers = rows(_WORKERS, pools=[pool.value for pool in Pool])
    live_workers = [row for row in workers if row.fleet is None and row.workers]
    risky = rows(_RISKY, most=MAX_RISKY) if for_metrics else ()
    letters = rows(_LETTERS, most=MAX_COUNTED) if for_metrics else ()
    return SystemSnapshot(
        at=now.at,
        totals=_totals(now),
        recent=tuple(map(batch_of, recent)),
        names={TenantId(row.tenant_id): row.tenant_name for row in recent},
        tenants=tuple(_tenant(row) for row in tenants if row.id is not None),
        risky=tuple(RiskyBatch(row.name, BatchId(row.id), row.deadline) for row in risky),
        live_workers={
            Pool(row.pool): LiveWorkers(row.workers, row.heartbeat_at, _engine_use(row))
            for row in live_workers
        },
        fleet_workers={
            FleetPool(row.fleet, Pool(row.pool)): row.workers
            for row in workers
            if row.fleet is not None
        },
        fleet_oldest={
            FleetPool(row.fleet, pool): at
            for row in tenants
            if row.fleet is not None
            for pool, at in _oldest(row).items()
        },
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
        open_letters={row.name: row.letters for row in letters},
        letters=now.letters,
        pauses=read_pauses(connection),
        planned=now.planned,
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


def _tenant(row: Any) -> TenantLoad:
    return TenantLoad(
        TenantId(row.id),
        row.name,
        row.batches,
        row.at_risk,
        depths={
            Pool.SPOT: Depth(row.spot, row.running_spot),
            Pool.DEDICATED: Depth(row.dedicated, row.running_dedicated),
        },
        oldest=_oldest(row),
    )


def _oldest(row: Any) -> dict[Pool, datetime]:
    oldest = {Pool.SPOT: row.oldest_spot, Pool.DEDICATED: row.oldest_dedicated}
    return {pool: at for pool, at in oldest.items() if at is not None}


def _engine_use(row: Any) -> EngineUse:
    return EngineUse(
        row.input_rate, row.output_rate, row.reporting, row.running, row.waiting, row.kv_cache
    )


def _lost_engines(live_workers: Sequence[Any]) -> Iterator[LostEngine]:
    for row in live_workers:
        for name, pool, state, reason, since in _decode(row.lost_engines):
            yield LostEngine(
                name, Pool(pool), BreakerState(state), reason, datetime.fromisoformat(since)
            )

"""The state of the whole system at one time: queue, workers, batches, events and components."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from lowtide.core.pools import DEFAULT_FLEET, Depth, FleetPool, Pool
from lowtide.engines.breaker import BreakerState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from lowtide.batches.model import Batch
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.core.pools import PoolPause
    from lowtide.status.last_seen import Component, LastSeen
    from lowtide.tenants.quotas import QuotaUse


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
        since = self.oldest.get(pool)
        return 0.0 if since is None else max((at - since).total_seconds(), 0.0)


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
    fleet: str = DEFAULT_FLEET


@dataclass(frozen=True, slots=True)
class FleetLoad:
    """A fleet's share of the load.

    `models` are the declared ones, empty for a fleet that is no longer declared. `planned` is the
    number of dedicated replicas that the last tick planned; None before the first.
    """

    models: tuple[str, ...] = ()
    tenants: tuple[TenantLoad, ...] = ()
    live_workers: Mapping[Pool, LiveWorkers] = field(default_factory=dict)
    planned: int | None = None

    @property
    def at_risk(self) -> int:
        """The number of batches at risk with requests of this fleet."""
        return sum(tenant.at_risk for tenant in self.tenants)


@dataclass(frozen=True, slots=True)
class SystemSnapshot:
    """One reading; all times are the database's.

    `recent` are the newest batches, newest first, of the tenants in `names`. `risky` are the most
    urgent batches at risk. `unsplit` batches wait for their file to be split, `unfinalized` ones for
    their output files, `events` for the broker; those of the audit log have waited since
    `audit_events_since`. `fleets` are the declared fleets, and those that
    still have requests, workers or a pause, by name; the last tick planned them at `ticked_at`.
    `open_letters` are the dead letters by tenant that were neither requeued nor discarded, `letters`
    those of all tenants, counted up to MAX_LISTED. Other counts of letters and events stop at
    MAX_COUNTED.
    """

    at: datetime
    totals: Totals = field(default_factory=Totals)
    recent: tuple[Batch, ...] = ()
    names: Mapping[TenantId, str] = field(default_factory=dict)
    tenants: tuple[TenantLoad, ...] = ()
    risky: tuple[RiskyBatch, ...] = ()
    live_workers: Mapping[Pool, LiveWorkers] = field(default_factory=dict)
    lost_engines: tuple[LostEngine, ...] = ()
    last_seen: Mapping[tuple[Component, str], LastSeen] = field(default_factory=dict)
    unsplit: Backlog = field(default_factory=Backlog)
    unfinalized: Backlog = field(default_factory=Backlog)
    events: Backlog = field(default_factory=Backlog)
    audit_events_since: datetime | None = None
    open_letters: Mapping[str, int] = field(default_factory=dict)
    quotas: tuple[QuotaUse, ...] = ()
    letters: int = 0
    pauses: tuple[PoolPause, ...] = ()
    fleets: Mapping[str, FleetLoad] = field(default_factory=lambda: {DEFAULT_FLEET: FleetLoad()})
    ticked_at: datetime | None = None
    server_version: str = ""
    schema_version: str = ""

    def of_fleet(self, name: str) -> SystemSnapshot:
        """Return the snapshot with the load, the workers and the pauses of one fleet alone.

        Batches, events and components stay those of the installation.
        """
        if name not in self.fleets or len(self.fleets) == 1:
            return self
        load = self.fleets[name]
        return replace(
            self,
            fleets={name: load},
            tenants=load.tenants,
            live_workers=load.live_workers,
            lost_engines=tuple(lost for lost in self.lost_engines if lost.fleet == name),
            pauses=tuple(pause for pause in self.pauses if pause.fleet == name),
        )

    def by_fleet(self) -> Iterator[tuple[str, SystemSnapshot]]:
        """Yield the name and the snapshot of each fleet."""
        return ((name, self.of_fleet(name)) for name in self.fleets)

    def pause(self, place: FleetPool) -> PoolPause | None:
        """Return the pause of a fleet's pool, if there is one."""
        return next((each for each in self.pauses if (each.fleet, each.pool) == place), None)

    def engines(self, pool: Pool) -> EngineUse:
        """Return the use of a pool's engines."""
        return self.live_workers[pool].engines if pool in self.live_workers else EngineUse()

    def workers(self, pool: Pool) -> int:
        """Return the number of a pool's workers with an unexpired lease."""
        return self.live_workers[pool].workers if pool in self.live_workers else 0

    def stranded(self, pool: Pool) -> int:
        """Return the number of a pool's workers if the engines of all are unavailable, else 0."""
        away = [
            lost
            for lost in self.lost_engines
            if lost.pool is pool and lost.state is not BreakerState.STARTING
        ]
        return len(away) if len(away) == self.workers(pool) else 0

    def depth(self, pool: Pool) -> Depth:
        """Return the queued and running requests of a pool."""
        depths = [tenant.depths[pool] for tenant in self.tenants]
        return Depth(sum(each.queued for each in depths), sum(each.running for each in depths))

    def oldest_age(self, pool: Pool) -> float:
        """Return the seconds that the first request of a pool has waited; 0 while none waits."""
        return max((tenant.oldest_age(pool, self.at) for tenant in self.tenants), default=0.0)


MAX_COUNTED: Final = 10_000
"""Nobody needs exact numbers of letters and events above this."""
MAX_LISTED: Final = 1000
"""Enough to tell that many dead letters are open; the page of dead letters counts further."""
MAX_RISKY: Final = 50
MAX_RECENT: Final = 20

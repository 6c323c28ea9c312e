"""How the installation works at a moment: queues, replicas, finished work, paused pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain.pools import Pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from lowtide.domain.ids import BatchId, TenantId
    from lowtide.domain.pools import PoolPause


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """Lines of a tenant that wait and run in a pool; `oldest` is since when the first one waits."""

    tenant: TenantId
    name: str
    pool: Pool
    queued: int
    running: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class Work:
    """What a pool has done for one batch so far."""

    batch: BatchId
    pool: Pool
    done: int
    interrupted: int


@dataclass(frozen=True, slots=True)
class Operations:
    """One reading; `at` is the database's time.

    `work` is of batches that are active or have just ended. `planned` are the dedicated replicas that
    the last tick wanted, at `ticked_at`; None before one.
    """

    at: datetime
    loads: tuple[TenantLoad, ...]
    work: tuple[Work, ...]
    workers: Mapping[Pool, int]
    planned: int | None
    ticked_at: datetime | None
    events_waiting: int
    oldest_event: datetime | None
    server_version: str
    schema_version: str
    pauses: tuple[PoolPause, ...] = ()

    def pause(self, pool: Pool) -> PoolPause | None:
        """The pause of a pool, if there is one."""
        return next((pause for pause in self.pauses if pause.pool is pool), None)

    def queued(self, pool: Pool) -> int:
        """How many lines wait in a pool."""
        return sum(load.queued for load in self.loads if load.pool is pool)

    def running(self, pool: Pool) -> int:
        """How many lines run in a pool."""
        return sum(load.running for load in self.loads if load.pool is pool)

    def oldest_age(self, pool: Pool) -> float:
        """For how many seconds the first line of a pool has waited; 0 while none does."""
        since = [load.oldest for load in self.loads if load.pool is pool and load.oldest]
        return max((self.at - min(since)).total_seconds(), 0.0) if since else 0.0


@dataclass(frozen=True, slots=True)
class PoolSample:
    """A pool at a moment; seconds, replicas, lines a second and interruptions a minute."""

    queued: int
    oldest_age: float
    workers: int
    desired: int
    throughput: float
    interruptions: float


@dataclass(frozen=True, slots=True)
class Sample:
    """All pools at a moment."""

    at: datetime
    pools: Mapping[Pool, PoolSample]


def sample_of(before: Operations | None, after: Operations, desired: Mapping[Pool, int]) -> Sample:
    """Return what a reading shows, with rates since the one before; without one they are 0."""
    seconds = 0.0 if before is None else (after.at - before.at).total_seconds()
    pools = {}
    for pool in Pool:
        done, interrupted = progress(before.work if before else after.work, after.work, pool)
        pools[pool] = PoolSample(
            queued=after.queued(pool),
            oldest_age=after.oldest_age(pool),
            workers=after.workers.get(pool, 0),
            desired=desired.get(pool, 0),
            throughput=done / seconds if seconds > 0 else 0.0,
            interruptions=60 * interrupted / seconds if seconds > 0 else 0.0,
        )
    return Sample(after.at, pools)


def progress(before: Iterable[Work], after: Sequence[Work], pool: Pool) -> tuple[int, int]:
    """Return the lines that a pool ended between two readings, and its interruptions.

    Batch by batch: one that is in one of the readings only was not open long enough to tell, or is
    new and started at nothing.
    """
    earlier = {work.batch: work for work in before if work.pool is pool}
    done = interrupted = 0
    for work in after:
        if work.pool is pool:
            then = earlier.get(work.batch)
            done += max(work.done - (then.done if then else 0), 0)
            interrupted += max(work.interrupted - (then.interrupted if then else 0), 0)
    return done, interrupted

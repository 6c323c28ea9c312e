"""The whole installation at a glance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain.pools import Pool

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.domain.batches import Batch


@dataclass(frozen=True, slots=True)
class Totals:
    """Batches of all tenants; completed, failed and cancelled are those of the last 24 hours.

    `failed` counts refused files and expired batches; `at_risk` is part of `in_progress`.
    """

    batches: int
    in_progress: int
    at_risk: int
    completed: int
    failed: int
    cancelled: int


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """Lines of a pool that wait and that run, and its workers with a living lease."""

    pool: Pool
    queued: int
    running: int
    workers: int


@dataclass(frozen=True, slots=True)
class Overview:
    """One reading; `at` is the database's time, `recent` the newest batches, newest first."""

    at: datetime
    totals: Totals
    pools: tuple[PoolLoad, ...]
    recent: tuple[Batch, ...]


@dataclass(frozen=True, slots=True)
class Reachability:
    """What a probe found: seconds until the answer, or the problem."""

    checked_at: datetime
    latency: float
    problem: str | None = None

    @property
    def reachable(self) -> bool:
        """Whether the answer was a good one."""
        return self.problem is None


def pools_of(batch: Batch) -> tuple[Pool, ...]:
    """Return the pools that a batch's lines wait, run or ran in.

    A line leaves spot only by escalation, and what started on dedicated never leaves that.
    """
    if batch.ended_at is not None and batch.total == 0:
        return ()
    if batch.pool is Pool.DEDICATED:
        return (Pool.DEDICATED,)
    pools = []
    if batch.total == 0 or batch.escalations < batch.total:
        pools.append(Pool.SPOT)
    if batch.escalations > 0 or batch.finished_on_dedicated > 0:
        pools.append(Pool.DEDICATED)
    return tuple(pools)

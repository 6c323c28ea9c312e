"""Worker pools, the prices of their replicas, and the cost of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


class Pool(StrEnum):
    """Where a line may run: cheap and interruptible, or stable and dearer."""

    SPOT = "spot"
    DEDICATED = "dedicated"


@dataclass(frozen=True, slots=True)
class Depth:
    """Lines of a pool that wait and that run."""

    queued: int
    running: int


@dataclass(frozen=True, slots=True)
class PoolPause:
    """A pool whose workers claim nothing, since when, and by whom."""

    pool: Pool
    since: datetime
    by: str


@dataclass(frozen=True, slots=True)
class PoolStanding:
    """A pool's lines, its workers with a living lease, and its pause, if there is one."""

    pool: Pool
    queued: int
    running: int
    workers: int
    pause: PoolPause | None = None


@dataclass(frozen=True, slots=True)
class OpenDeadlines:
    """Batches whose deadline is held so far, and the first of these deadlines."""

    batches: int
    first: datetime | None


@dataclass(frozen=True, slots=True)
class PauseEffect:
    """What a pause would do: lines that wait, lines that run to their end, deadlines given up.

    `stops_all`: the other pool is paused already.
    """

    pool: Pool
    queued: int
    running: int
    endangered: OpenDeadlines
    stops_all: bool = False


def effect_of(pool: Pool, standings: Sequence[PoolStanding], held: OpenDeadlines) -> PauseEffect:
    """Return what pausing a pool would do.

    Deadlines are promised by dedicated alone: without it none is, and without spot all are.
    """
    (standing,) = (each for each in standings if each.pool is pool)
    endangered = held if pool is Pool.DEDICATED else OpenDeadlines(0, None)
    stops_all = all(each.pause is not None for each in standings if each.pool is not pool)
    return PauseEffect(pool, standing.queued, standing.running, endangered, stops_all)


_SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Prices:
    """What one replica costs an hour, in `currency`."""

    spot: float
    dedicated: float
    currency: str

    def of_second(self, pool: Pool) -> float:
        """Return what one second of a replica of a pool costs."""
        return (self.spot if pool is Pool.SPOT else self.dedicated) / _SECONDS_AN_HOUR


@dataclass(frozen=True, slots=True)
class Cost:
    """What a batch costs by pool, and what the same results would cost on dedicated alone.

    It counts the time of accepted results: what was interrupted, lost or tried in vain, and replicas
    that start or idle, belong to no batch.
    """

    currency: str
    spot: float
    dedicated: float
    all_dedicated: float

    @property
    def total(self) -> float:
        """What both pools cost."""
        return self.spot + self.dedicated

    @property
    def saving(self) -> float:
        """The share of the all-dedicated cost that spot saved; 0 without any cost."""
        return 1 - self.total / self.all_dedicated if self.all_dedicated > 0 else 0.0


def cost_of(spot_seconds: float, dedicated_seconds: float, prices: Prices) -> Cost:
    """Return the cost of so many replica seconds; a result takes as long in either pool.

    A line's replica seconds are its worker's, each divided by the lines in the worker's hands, so
    that a second of a replica is shared out once (processor sharing, Kleinrock 1967).

        >>> cost_of(3600, 0, Prices(1.0, 3.0, "USD")).saving
        0.6666666666666667
    """
    return Cost(
        currency=prices.currency,
        spot=spot_seconds * prices.spot / _SECONDS_AN_HOUR,
        dedicated=dedicated_seconds * prices.dedicated / _SECONDS_AN_HOUR,
        all_dedicated=(spot_seconds + dedicated_seconds) * prices.dedicated / _SECONDS_AN_HOUR,
    )

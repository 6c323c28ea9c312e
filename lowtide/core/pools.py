"""Worker pools, the prices of their replicas, and the cost of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


class Pool(StrEnum):
    """A group of workers: cheap and interruptible, or stable and more expensive."""

    SPOT = "spot"
    DEDICATED = "dedicated"


DEFAULT_FLEET: Final = "default"
"""The fleet of an installation that declares none."""


class FleetPool(NamedTuple):
    """A pool of a fleet: the lane of the queue that its workers serve."""

    fleet: str
    pool: Pool

    @property
    def key(self) -> str:
        """The name in records: `llama-70b/spot`, or `spot` of the default fleet."""
        return self.pool.value if self.fleet == DEFAULT_FLEET else f"{self.fleet}/{self.pool}"

    @property
    def label(self) -> str:
        """The pool and its fleet in words: `spot of llama-70b`, or `spot` of the default fleet."""
        return self.pool.value if self.fleet == DEFAULT_FLEET else f"{self.pool} of {self.fleet}"


@dataclass(frozen=True, slots=True)
class Depth:
    """The queued and running requests of a pool."""

    queued: int
    running: int


@dataclass(frozen=True, slots=True)
class PoolPause:
    """A pause of a fleet's pool, during which its workers claim nothing."""

    pool: Pool
    since: datetime
    by: str
    fleet: str = DEFAULT_FLEET


@dataclass(frozen=True, slots=True)
class PoolState:
    """The state of a fleet's pool: requests, workers with a valid lease, and its pause, if any."""

    pool: Pool
    queued: int
    running: int
    workers: int
    pause: PoolPause | None = None
    fleet: str = DEFAULT_FLEET


@dataclass(frozen=True, slots=True)
class OpenDeadlines:
    """The number of open batches that are not at risk, and the first of their deadlines."""

    batches: int
    first: datetime | None


@dataclass(frozen=True, slots=True)
class PauseEffect:
    """The effect of a pause: requests that wait, requests that still finish, deadlines given up.

    `stops_all` is True if the fleet's other pool is already paused.
    """

    pool: Pool
    queued: int
    running: int
    endangered: OpenDeadlines
    stops_all: bool = False
    fleet: str = DEFAULT_FLEET


def effect_of(
    place: FleetPool, standings: Sequence[PoolState], deadlines: OpenDeadlines
) -> PauseEffect:
    """Return the effect of pausing a fleet's pool; `deadlines` are those of the fleet.

    Only dedicated capacity backs deadlines: pausing dedicated endangers all, pausing spot none.
    """
    of_fleet = {each.pool: each for each in standings if each.fleet == place.fleet}
    standing = of_fleet.pop(place.pool)
    endangered = deadlines if place.pool is Pool.DEDICATED else OpenDeadlines(0, None)
    stops_all = all(each.pause is not None for each in of_fleet.values())
    return PauseEffect(
        place.pool, standing.queued, standing.running, endangered, stops_all, place.fleet
    )


SPOT_HOURS: Final = "spot-hours"
"""The currency while none is set: hours of a spot replica."""
_SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of a replica hour, in `currency`."""

    spot: float
    dedicated: float
    currency: str

    def of_second(self, pool: Pool) -> float:
        """Return the price of a replica second in a pool."""
        return (self.spot if pool is Pool.SPOT else self.dedicated) / _SECONDS_AN_HOUR


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a batch by pool, and of the same results on dedicated alone.

    Only the time of accepted results counts: interrupted, lost and failed attempts, and replicas
    that start or idle, are charged to no batch. A request's replica seconds are its worker's, each
    divided by the requests on that worker, so that every replica second is shared out once
    (processor sharing, Kleinrock 1967). A result is assumed to take as long in either pool.
    """

    currency: str
    spot: float
    dedicated: float
    all_dedicated: float

    @property
    def total(self) -> float:
        """The cost of both pools."""
        return self.spot + self.dedicated

    @property
    def saving(self) -> float:
        """The share of the all-dedicated cost saved by spot; 0 without any cost."""
        return 1 - self.total / self.all_dedicated if self.all_dedicated > 0 else 0.0

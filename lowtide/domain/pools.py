"""Worker pools."""

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

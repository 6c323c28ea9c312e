"""What pools did over the last hours and days, in points that a chart can show."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from lowtide.domain.pools import Pool


class HistoryRange(StrEnum):
    """How far back a look goes."""

    HOUR = "1h"
    SIX_HOURS = "6h"
    DAY = "24h"
    WEEK = "7d"

    @property
    def span(self) -> timedelta:
        """From when on."""
        return _SCALES[self][0]

    @property
    def step(self) -> timedelta:
        """From point to point; at most 300 of them in a range."""
        return _SCALES[self][1]

    @property
    def bar(self) -> timedelta:
        """How long ended batches are counted together."""
        return _SCALES[self][2]


_SCALES: Final = {
    HistoryRange.HOUR: (timedelta(hours=1), timedelta(minutes=1), timedelta(minutes=5)),
    HistoryRange.SIX_HOURS: (timedelta(hours=6), timedelta(minutes=2), timedelta(minutes=15)),
    HistoryRange.DAY: (timedelta(days=1), timedelta(minutes=5), timedelta(hours=1)),
    HistoryRange.WEEK: (timedelta(days=7), timedelta(minutes=40), timedelta(hours=6)),
}


@dataclass(frozen=True, slots=True)
class PoolLevel:
    """What a tick knows of a pool: lines that wait and run, and the replicas that it wants."""

    queued: int
    running: int
    desired: int


@dataclass(frozen=True, slots=True)
class PoolPoint:
    """A pool over one step: the most of each level, and means of what flowed.

    `oldest_age` in seconds, `throughput` in lines a second, `interruptions` a minute, `earning` in
    replicas' worth of time that became results. What flowed is None where nothing was measured.
    """

    queued: int
    running: int
    oldest_age: float
    desired: int
    live: int
    throughput: float | None
    interruptions: float | None
    earning: float | None


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """All pools over the step that begins `at`."""

    at: datetime
    pools: Mapping[Pool, PoolPoint]


@dataclass(frozen=True, slots=True)
class SlaBar:
    """Batches that ended within the time from `at` on, by whether their deadline was held."""

    at: datetime
    met: int
    violated: int


@dataclass(frozen=True, slots=True)
class History:
    """A range that ends at `until`, the database's time; points and bars oldest first."""

    range: HistoryRange
    until: datetime
    points: tuple[HistoryPoint, ...] = ()
    sla: tuple[SlaBar, ...] = ()

    def runs(self) -> list[list[HistoryPoint]]:
        """Return the points in unbroken runs: between two of them nothing was sampled."""
        return unbroken(self.points, self.range.step)


def unbroken(points: Iterable[HistoryPoint], step: timedelta) -> list[list[HistoryPoint]]:
    """Return points in runs without a gap, that is, each one step after the other."""
    runs: list[list[HistoryPoint]] = []
    for point in points:
        if runs and point.at - runs[-1][-1].at <= step:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs

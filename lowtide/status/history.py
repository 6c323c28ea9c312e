"""The history of the pools: samples, one a minute, aggregated to points for charts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.database.connections import begin
from lowtide.scheduler.pauses import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from sqlalchemy import Engine

    from lowtide.core.pools import FleetPool


class HistoryRange(StrEnum):
    """The length of a history."""

    HOUR = "1h"
    SIX_HOURS = "6h"
    DAY = "24h"
    WEEK = "7d"

    @property
    def span(self) -> timedelta:
        """The time covered."""
        return _SCALES[self][0]

    @property
    def step(self) -> timedelta:
        """The time between points; a range has at most 300."""
        return _SCALES[self][1]

    @property
    def bar(self) -> timedelta:
        """The time covered by one SLA bar."""
        return _SCALES[self][2]


_SCALES: Final = {
    HistoryRange.HOUR: (timedelta(hours=1), timedelta(minutes=1), timedelta(minutes=5)),
    HistoryRange.SIX_HOURS: (timedelta(hours=6), timedelta(minutes=2), timedelta(minutes=15)),
    HistoryRange.DAY: (timedelta(days=1), timedelta(minutes=5), timedelta(hours=1)),
    HistoryRange.WEEK: (timedelta(days=7), timedelta(minutes=40), timedelta(hours=6)),
}


@dataclass(frozen=True, slots=True)
class PoolPoint:
    """A pool over one step: maxima of the levels, means of the rates.

    `oldest_age` is in seconds, `throughput` in requests per second, `interruptions` per minute;
    `earning` is the mean number of replicas whose time became results. Rates are None where
    nothing was measured.
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
    """All pools over the step that begins at `at`."""

    at: datetime
    pools: Mapping[Pool, PoolPoint]


@dataclass(frozen=True, slots=True)
class SlaBar:
    """The batches that ended in the bar that begins at `at`, by deadline met or missed."""

    at: datetime
    met: int
    missed: int


@dataclass(frozen=True, slots=True)
class PauseSpan:
    """The time in which a fleet's pool was paused; `until` is None while it is."""

    pool: Pool
    since: datetime
    until: datetime | None
    fleet: str = DEFAULT_FLEET


@dataclass(frozen=True, slots=True)
class History:
    """A range that ends at `until`, the database's time; its parts are oldest first."""

    range: HistoryRange
    until: datetime
    points: tuple[HistoryPoint, ...] = ()
    sla: tuple[SlaBar, ...] = ()
    pauses: tuple[PauseSpan, ...] = ()

    def runs(self) -> list[list[HistoryPoint]]:
        """Return the points in runs without a gap; nothing was sampled between two runs."""
        return unbroken(self.points, self.range.step)


def unbroken(points: Iterable[HistoryPoint], step: timedelta) -> list[list[HistoryPoint]]:
    """Return the points in runs without a gap: each follows the previous within one step."""
    runs: list[list[HistoryPoint]] = []
    for point in points:
        if runs and point.at - runs[-1][-1].at <= step:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


POINTS = """
SELECT date_bin(make_interval(secs => :step), at, 'epoch') AS at, pool, max(queued) AS queued,
  max(running) AS running, max(oldest_age) AS oldest_age, max(desired) AS desired,
  max(live) AS live, sum(seconds) AS seconds, sum(done)::bigint AS done,
  sum(interrupted)::bigint AS interrupted, sum(replica_seconds) AS replica_seconds
FROM (
  SELECT at, pool, sum(queued) AS queued, sum(running) AS running, max(oldest_age) AS oldest_age,
    sum(desired) AS desired, sum(live) AS live, max(seconds) AS seconds, sum(done) AS done,
    sum(interrupted) AS interrupted, sum(replica_seconds) AS replica_seconds
  FROM pool_samples
  WHERE at >= date_bin(make_interval(secs => :step), now() - make_interval(secs => :span), 'epoch')
    AND (cast(:fleet AS text) IS NULL OR fleet = :fleet)
  GROUP BY at, pool) s
GROUP BY 1, 2 ORDER BY 1, 2
"""
_POINTS = text(POINTS)
# As Batch.sla_state: rejected files and cancelled batches have no SLA.
SLA = """
SELECT date_bin(make_interval(secs => :bar), ended_at, 'epoch') AS at,
  count(*) FILTER (WHERE NOT missed) AS met, count(*) FILTER (WHERE missed) AS missed
FROM (
  SELECT coalesce(completed_at, expired_at) AS ended_at,
    status = 'expired' OR completed_at > deadline AS missed
  FROM batches WHERE status IN ('completed', 'failed', 'expired', 'cancelled')
    AND coalesce(completed_at, failed_at, expired_at, cancelled_at)
      > date_bin(make_interval(secs => :bar), now() - make_interval(secs => :span), 'epoch')
    AND (cast(:fleet AS text) IS NULL OR fleet = :fleet OR fleet IS NULL AND EXISTS (
      SELECT FROM batch_fleets p WHERE p.batch_id = batches.id AND p.fleet = :fleet))
) e WHERE ended_at IS NOT NULL GROUP BY 1 ORDER BY 1
"""
_SLA = text(SLA)
MAX_PAUSES: Final = 100
PAUSES = """
SELECT c.at, c.action, c.subject
FROM unnest(ARRAY['pool.paused', 'pool.resumed']) AS wanted (action)
CROSS JOIN LATERAL (
  SELECT id, at, action, subject FROM audit_log
  WHERE action = wanted.action ORDER BY id DESC LIMIT :limit) c
ORDER BY c.id
"""
_PAUSES = text(PAUSES)
_NOW = text("SELECT now()")


class HistoryStore:
    """Queries for the history, as a role with access to every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, wanted: HistoryRange, fleet: str | None = None) -> History:
        """Return the history of a range until now, of one fleet or of all; raises Unavailable."""
        span = wanted.span.total_seconds()
        with begin(self._engine) as connection:
            until = connection.execute(_NOW).scalar_one()
            parameters = {"span": span, "step": wanted.step.total_seconds(), "fleet": fleet}
            rows = connection.execute(_POINTS, parameters).all()
            bars = {"span": span, "bar": wanted.bar.total_seconds(), "fleet": fleet}
            ended = connection.execute(_SLA, bars).all()
            changes = connection.execute(_PAUSES, {"limit": MAX_PAUSES}).all()
            return History(
                wanted,
                until,
                tuple(_points(rows)),
                tuple(SlaBar(row.at, row.met, row.missed) for row in ended),
                tuple(
                    pause
                    for pause in _pauses(changes)
                    if (pause.until is None or pause.until > until - wanted.span)
                    and fleet in (None, pause.fleet)
                ),
            )


def _pauses(changes: Iterable[Any]) -> Iterable[PauseSpan]:
    """Yield the pauses in the audit log; a resumption whose pause is not among them is left out."""
    paused: dict[FleetPool, datetime] = {}
    for change in changes:
        place = place_of(change.subject)
        if change.action == "pool.paused":
            paused[place] = change.at
        elif place in paused:
            yield PauseSpan(place.pool, paused.pop(place), change.at, place.fleet)
    for place, since in paused.items():
        yield PauseSpan(place.pool, since, None, place.fleet)


def _points(rows: Iterable[Any]) -> Iterable[HistoryPoint]:
    by_time: dict[Any, dict[Pool, PoolPoint]] = {}
    for row in rows:
        by_time.setdefault(row.at, {})[Pool(row.pool)] = _point(row)
    return (HistoryPoint(at, pools) for at, pools in by_time.items())


def _point(row: Any) -> PoolPoint:
    seconds = row.seconds
    return PoolPoint(
        queued=row.queued,
        running=row.running,
        oldest_age=row.oldest_age,
        desired=row.desired,
        live=row.live,
        throughput=row.done / seconds if seconds else None,
        interruptions=60 * row.interrupted / seconds if seconds else None,
        earning=row.replica_seconds / seconds if seconds else None,
    )


SERVES_SECONDS: Final = 10.0
"""The seconds that a reading is cached; a new sample arrives only once a minute."""


class HistoryBook:
    """Cached ranges of history; all readers share a reading for 10 s."""

    def __init__(
        self, source: HistoryStore, *, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._timer = timer
        self._read: dict[tuple[HistoryRange, str | None], tuple[float, History]] = {}

    def read(self, wanted: HistoryRange, fleet: str | None = None) -> History:
        """Return the history of a range, of one fleet or of all; raises Unavailable."""
        now, key = self._timer(), (wanted, fleet)
        known = self._read.get(key)
        if known is None or now - known[0] >= SERVES_SECONDS:
            known = self._read[key] = now, self._source.read(wanted, fleet)
        return known[1]

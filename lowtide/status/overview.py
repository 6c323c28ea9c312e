"""Totals of the whole installation, reachability, and concerns that need attention."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from lowtide.batches.store import batch_of
from lowtide.core.errors import LowtideError, Unavailable
from lowtide.core.pools import Pool
from lowtide.database.connections import begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from sqlalchemy import Connection, Engine

    from lowtide.batches.model import Batch
    from lowtide.status.operations import Operations


@dataclass(frozen=True, slots=True)
class Totals:
    """Batches of all tenants; completed, failed and cancelled ones of the last 24 hours.

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
    """A pool's queued and running requests, and its workers with an unexpired lease."""

    pool: Pool
    queued: int
    running: int
    workers: int


@dataclass(frozen=True, slots=True)
class Overview:
    """One reading; `at` is the database's time, `recent` are the newest batches, newest first."""

    at: datetime
    totals: Totals
    pools: tuple[PoolLoad, ...]
    recent: tuple[Batch, ...]


@dataclass(frozen=True, slots=True)
class Reachability:
    """The result of a probe: the seconds that it took, and the problem if it failed."""

    checked_at: datetime
    latency: float
    problem: str | None = None

    @property
    def reachable(self) -> bool:
        """True if the probe succeeded."""
        return self.problem is None


def pools_of(batch: Batch) -> tuple[Pool, ...]:
    """Return the pools that a batch's requests wait, run or ran in.

    A request leaves spot only by escalation; one that starts on dedicated stays there.
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


# The status lists repeat the predicates of the indexes batches_active and batches_ended.
TOTALS = """
SELECT now() AS at, (SELECT count(*) FROM batches) AS batches, active.*, ended.*
FROM (
  SELECT count(*) AS in_progress, count(*) FILTER (WHERE at_risk) AS at_risk
  FROM batches WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
) active, (
  SELECT count(*) FILTER (WHERE status = 'completed') AS completed,
    count(*) FILTER (WHERE status IN ('failed', 'expired')) AS failed,
    count(*) FILTER (WHERE status = 'cancelled') AS cancelled
  FROM batches WHERE status IN ('completed', 'failed', 'expired', 'cancelled')
    AND coalesce(completed_at, failed_at, expired_at, cancelled_at) > now() - interval '24 hours'
) ended
"""
POOLS = """
SELECT p.pool, (SELECT count(*) FROM queue q WHERE q.pool = p.pool) AS queued,
  (SELECT count(*) FROM claims c WHERE c.pool = p.pool) AS running,
  (SELECT count(*) FROM workers w WHERE w.pool = p.pool AND w.expires_at > now()) AS workers
FROM (VALUES (1, 'spot'), (2, 'dedicated')) AS p (place, pool) ORDER BY place
"""
RECENT = "SELECT * FROM batch_states ORDER BY id DESC LIMIT :limit"

_CHECK = text("SELECT 1")
_TOTALS = text(TOTALS)
_POOLS = text(POOLS)
_RECENT = text(RECENT)


class OverviewStore:
    """Queries for the overview, as a role with access to every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def check(self) -> None:
        """Raise Unavailable if the database does not answer."""
        with _reading(self._engine) as connection:
            connection.execute(_CHECK)

    def read(self, *, recent: int) -> Overview:
        """Return totals, pools and the newest `recent` batches; raises Unavailable."""
        with _reading(self._engine) as connection:
            totals = connection.execute(_TOTALS).one()
            pools = connection.execute(_POOLS).all()
            batches = connection.execute(_RECENT, {"limit": recent}).all()
        return Overview(
            at=totals.at,
            totals=Totals(
                batches=totals.batches,
                in_progress=totals.in_progress,
                at_risk=totals.at_risk,
                completed=totals.completed,
                failed=totals.failed,
                cancelled=totals.cancelled,
            ),
            pools=tuple(
                PoolLoad(Pool(row.pool), row.queued, row.running, row.workers) for row in pools
            ),
            recent=tuple(batch_of(row) for row in batches),
        )


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    """Open a transaction for reads; raises Unavailable for every error of the database."""
    try:
        with begin(engine) as connection:
            yield connection
    except SQLAlchemyError as error:
        # The status pages must survive a missing schema and a refused password.
        raise Unavailable("The database responds, but queries fail.") from error


RECENT_BATCHES = 20


class OverviewSource(Protocol):
    """A source of overviews."""

    def check(self) -> None:
        """Raise Unavailable if the source does not answer."""
        ...

    def read(self, *, recent: int) -> Overview:
        """Return an overview with the newest `recent` batches; raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """The last readings; None before the first."""

    overview: Overview | None = None
    database: Reachability | None = None
    api: Reachability | None = None


class Watch:
    """The last good overview, kept through failures, and the reachability of database and API.

    `look` and `probe` record the error of a failing dependency. They may run on two threads at the
    same time, but each only once. `probe_api` raises a LowtideError if the API does not answer.
    """

    def __init__(
        self,
        source: OverviewSource,
        probe_api: Callable[[], None],
        *,
        clock: Callable[[], datetime],
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._source = source
        self._probe_api = probe_api
        self._clock = clock
        self._timer = timer
        self._database = Seen()
        self._api: Reachability | None = None

    @property
    def seen(self) -> Seen:
        """The last readings."""
        return replace(self._database, api=self._api)

    def look(self) -> None:
        """Read the database."""
        database = self._measure(self._source.check)
        overview = self._database.overview
        if database.reachable:
            try:
                overview = self._source.read(recent=RECENT_BATCHES)
            except LowtideError as error:
                database = replace(database, problem=error.message)
        self._database = Seen(overview, database)

    def probe(self) -> None:
        """Probe the API."""
        self._api = self._measure(self._probe_api)

    def _measure(self, probe: Callable[[], None]) -> Reachability:
        start = self._timer()
        problem = None
        try:
            probe()
        except LowtideError as error:
            problem = error.message
        return Reachability(self._clock(), self._timer() - start, problem)


TICK_SILENCE: Final = timedelta(minutes=2)
"""The scheduler ticks every 10 s; the next tick makes up for a few lost ones."""
EVENT_AGE: Final = timedelta(minutes=2)
"""A tick sends waiting events again, so they wait this long only if the broker refuses them."""

WORKER_WAIT_SECONDS: Final = 300.0
"""Longer than a cold start of a node, an image and a model."""


@dataclass(frozen=True, slots=True)
class Concern:
    """A condition that needs attention, and the page that shows more."""

    text: str
    path: str


def concerns(overview: Overview | None, operations: Operations | None) -> tuple[Concern, ...]:
    """Return the concerns of the last readings, the most urgent first."""
    found: list[Concern] = []
    if operations is not None:
        found += _of_operations(operations)
    if overview is not None and overview.totals.at_risk:
        count = overview.totals.at_risk
        what = "batch is" if count == 1 else "batches are"
        found.append(Concern(f"{count:,} {what} at risk of missing the deadline", "/batches"))
    return tuple(found)


def _of_operations(reading: Operations) -> list[Concern]:
    found = []
    silence = None if reading.ticked_at is None else reading.at - reading.ticked_at
    busy = any(load.queued or load.running for load in reading.loads)
    if silence is None and busy:
        found.append(Concern("The scheduler has not ticked yet", "/health"))
    elif silence is not None and silence > TICK_SILENCE:
        minutes = int(silence.total_seconds() // 60)
        found.append(Concern(f"No scheduler tick for {minutes:,} min", "/health"))
    if reading.oldest_event is not None and reading.at - reading.oldest_event > EVENT_AGE:
        events = (
            "1 event is"
            if reading.events_waiting == 1
            else (f"{reading.events_waiting:,} events are")
        )
        found.append(Concern(f"{events} waiting for the broker", "/health"))
    found += [
        Concern(f"Requests are queued in {pool}, but no worker is running", "/queues")
        for pool in Pool
        if not reading.workers.get(pool)
        and reading.pause(pool) is None
        and reading.oldest_age(pool) > WORKER_WAIT_SECONDS
    ]
    return found


class Probing:
    """The last result of each component's probe, which raises a LowtideError without an answer."""

    def __init__(
        self,
        probes: Mapping[str, Callable[[], None]],
        *,
        clock: Callable[[], datetime],
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._probes = probes
        self._clock = clock
        self._timer = timer
        self._found: dict[str, Reachability] = {}

    @property
    def found(self) -> Mapping[str, Reachability]:
        """The last results by component; one that was never probed is missing."""
        return self._found

    def probe(self) -> None:
        """Probe every component, one after the other."""
        for name, probe in self._probes.items():
            start = self._timer()
            problem = None
            try:
                probe()
            except LowtideError as error:
                problem = error.message
            latency = self._timer() - start
            self._found[name] = Reachability(self._clock(), latency, problem)

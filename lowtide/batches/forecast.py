"""Forecasts of batch completion, from the open work of all tenants."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.batches.model import BatchStatus
from lowtide.core.pools import Pool
from lowtide.database.connections import begin
from lowtide.planning.demand import Demand, Rate, attempts_per_line
from lowtide.planning.state import SchedulerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy import Connection, Engine

    from lowtide.batches.model import Batch
    from lowtide.planning.demand import Capacity


@dataclass(frozen=True, slots=True)
class PoolWorkers:
    """The running workers of a pool, and the requests per second that each settles."""

    replicas: int
    rate: float


def expected_completion(
    open_lines: int,
    lines_ahead: int,
    pools: Iterable[PoolWorkers],
    now: datetime,
    *,
    attempts: float = 1.0,
) -> datetime | None:
    """Return the completion time of a batch if the running replicas keep their rates.

    `lines_ahead` are open requests of batches with earlier deadlines; `attempts` is the mean number
    of attempts per request. None if nothing runs.
    """
    if open_lines <= 0:
        return now
    speed = sum(pool.replicas * pool.rate for pool in pools)
    if speed <= 0:
        return None
    try:
        return now + timedelta(seconds=(open_lines + lines_ahead) * attempts / speed)
    except OverflowError:
        return None


_MIXED = ""


@dataclass(frozen=True, slots=True)
class OpenWork:
    """Open batches with the same deadline and model; a model of None is not known yet.

    `lines` counts requests without a result; `ended` and `retried` count those so far.
    """

    deadline: datetime
    model: str | None
    lines: int
    ended: int = 0
    retried: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """The open work of all batches, the workers and their rates, at the database's time `at`.

    `workers` counts live workers whose engine responds; `rates` are measured, by pool and model (""
    for several). Workers of `paused` pools finish their claims and claim nothing more.
    """

    at: datetime
    work: tuple[OpenWork, ...] = ()
    workers: Mapping[Pool, int] = field(default_factory=dict)
    rates: Mapping[tuple[Pool, str], Rate] = field(default_factory=dict)
    paused: frozenset[Pool] = frozenset()

    @property
    def demand(self) -> tuple[Demand, ...]:
        """The open requests by deadline."""
        return tuple(Demand(work.deadline, work.lines) for work in self.work)

    def eta(self, batch: Batch, prior: float) -> datetime | None:
        """Return the expected completion of a batch; None unless in progress and workers run.

        `prior` is the rate of an unmeasured replica, in requests per second. Requests that started
        in dedicated stay there: spot workers never run them.
        """
        if batch.status is not BatchStatus.IN_PROGRESS:
            return None
        return expected_completion(
            batch.total - batch.completed - batch.failed,
            sum(work.lines for work in self.work if work.deadline < batch.deadline),
            [
                PoolWorkers(count, self._rate(pool, prior))
                for pool, count in self.workers.items()
                if pool not in self.paused and batch.pool in (Pool.SPOT, pool)
            ],
            self.at,
            attempts=attempts_per_line(*self._attempt_counts()),
        )

    def measured(self, capacity: Capacity) -> Capacity:
        """Return the capacity with measured rates, as the scheduler computes it."""
        ended, retried = self._attempt_counts()
        dedicated = {
            model: rate for (pool, model), rate in self.rates.items() if pool is Pool.DEDICATED
        }
        models = frozenset(work.model for work in self.work if work.model is not None)
        state = SchedulerState(
            self.at,
            (),
            models=models,
            ended=ended,
            retried=retried,
            rates=dedicated,
            paused=self.paused,
        )
        return state.measured(capacity)

    def _attempt_counts(self) -> tuple[int, int]:
        return sum(work.ended for work in self.work), sum(work.retried for work in self.work)

    def _rate(self, pool: Pool, prior: float) -> float:
        """Return the requests per second of a replica, weighted by the open work of each model."""
        lines = sum(work.lines for work in self.work)
        seconds = sum(work.lines / self._model_rate(pool, work.model, prior) for work in self.work)
        return lines / seconds if seconds > 0 else self._model_rate(pool, None, prior)

    def _model_rate(self, pool: Pool, model: str | None, prior: float) -> float:
        return self.measured_rate(pool, model) or prior

    def measured_rate(self, pool: Pool, model: str | None) -> float | None:
        """Return a replica's measured requests per second for a model; None if unmeasured."""
        for name in (model, _MIXED):
            rate = None if name is None else self.rates.get((pool, name))
            if rate is not None and rate.mean:
                return rate.mean
        return None


_WORK = text("""
SELECT now() AS at, ARRAY(SELECT pool FROM paused_pools) AS paused, w.*
FROM (SELECT 1) AS always LEFT JOIN open_work() w ON w.lines > 0 ORDER BY w.deadline
""")
_WORKERS = text("SELECT pool, replicas FROM living_workers()")
_RATES = text("SELECT pool, model, seconds, lines, squares, weights FROM service_rates")


def read_workload(connection: Connection) -> Workload:
    """Read the workload in the caller's transaction."""
    rows = connection.execute(_WORK).all()
    return Workload(
        at=rows[0].at,
        work=tuple(
            OpenWork(row.deadline, row.model, row.lines, row.ended, row.retried)
            for row in rows
            if row.lines is not None
        ),
        workers={Pool(row.pool): row.replicas for row in connection.execute(_WORKERS)},
        rates={
            (Pool(row.pool), row.model): Rate(row.seconds, row.lines, row.squares, row.weights)
            for row in connection.execute(_RATES)
        },
        paused=frozenset(map(Pool, rows[0].paused)),
    )


class WorkloadStore:
    """Read the open work of all tenants."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Workload:
        """Return the open work of all tenants, the running workers and their rates."""
        with begin(self._engine) as connection:
            return read_workload(connection)


_MAX_AGE_SECONDS = 2.0


class Forecaster:
    """Estimate the completion of batches. The workload is cached for 2 seconds, as clients poll.

    `prior` is the rate of an unmeasured replica, in requests per second.
    """

    def __init__(
        self,
        source: WorkloadStore,
        *,
        prior: float,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._prior = prior
        self._timer = timer
        self._cache: tuple[float, Workload] | None = None

    def with_eta(self, batch: Batch) -> Batch:
        """Return the batch with its ETA."""
        if batch.status is not BatchStatus.IN_PROGRESS:
            return batch
        return replace(batch, eta=self._workload().eta(batch, self._prior))

    def measured_rate(self, model: str | None) -> float | None:
        """Return a replica's measured requests per second for a model; None if unmeasured."""
        workload = self._workload()
        rates = (workload.measured_rate(pool, model) for pool in Pool)
        return next((rate for rate in rates if rate is not None), None)

    def _workload(self) -> Workload:
        now = self._timer()
        if self._cache is None or now - self._cache[0] > _MAX_AGE_SECONDS:
            self._cache = now, self._source.read()
        return self._cache[1]

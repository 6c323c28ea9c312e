"""Forecasts of batch completion, from the open work of all tenants."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.batches.model import BatchStatus
from lowtide.batches.workload import OpenWork, PoolWorkers, Workload, Workloads
from lowtide.core.pools import Pool
from lowtide.database.connections import begin
from lowtide.planning.demand import Rate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection, Engine

    from lowtide.batches.model import Batch
    from lowtide.batches.workload import FleetCapacity


_WORK = text("""
SELECT f.name, now() AS at, ARRAY(SELECT pool FROM paused_pools WHERE fleet = f.name) AS paused, (
  SELECT json_object_agg(pool, concurrency) FROM found_concurrency WHERE fleet = f.name) AS concurrency,
  w.*
FROM fleets f LEFT JOIN open_work() w ON w.fleet = f.name AND w.lines > 0 ORDER BY w.deadline
""")
_WORKERS = text("SELECT fleet, pool, ready, away, starting FROM living_workers()")
_RATES = text("SELECT fleet, pool, model, seconds, lines, squares, weights FROM service_rates")


def read_workloads(connection: Connection) -> Workloads:
    """Read the workloads in the caller's transaction."""
    rows_of: dict[str, list[Any]] = {}
    for row in connection.execute(_WORK):
        rows_of.setdefault(row.name, []).append(row)
    workers: dict[str, dict[Pool, PoolWorkers]] = {}
    for row in connection.execute(_WORKERS):
        counts = PoolWorkers(row.ready, row.away, row.starting)
        workers.setdefault(row.fleet, {})[Pool(row.pool)] = counts
    rates: dict[str, dict[tuple[Pool, str], Rate]] = {}
    for row in connection.execute(_RATES):
        rate = Rate(row.seconds, row.lines, row.squares, row.weights)
        rates.setdefault(row.fleet, {})[Pool(row.pool), row.model] = rate
    at = next(iter(rows_of.values()))[0].at
    return Workloads(
        at,
        {
            fleet: Workload(
                at=at,
                work=tuple(
                    _open_work(row) for row in rows if row.lines is not None and not row.held
                ),
                held=tuple(_open_work(row) for row in rows if row.held),
                workers=workers.get(fleet, {}),
                rates=rates.get(fleet, {}),
                concurrency={
                    Pool(pool): found for pool, found in (rows[0].concurrency or {}).items()
                },
                paused=frozenset(map(Pool, rows[0].paused)),
            )
            for fleet, rows in rows_of.items()
        },
    )


def _open_work(row: Any) -> OpenWork:
    return OpenWork(
        row.deadline,
        row.model,
        row.lines,
        row.ended,
        row.retried,
        row.running_seconds,
        row.sharer,
        row.weight,
        row.max_running,
        row.at_risk,
        row.pinned,
        row.last_at,
        row.priority,
        row.barrier,
    )


class WorkloadStore:
    """Read the open work of all tenants."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Workloads:
        """Return the open work of all tenants, the running workers and their rates, by fleet."""
        with begin(self._engine) as connection:
            return read_workloads(connection)


_MAX_AGE_SECONDS = 2.0


class Forecaster:
    """Estimate the completion of batches, and the end of their data, by default after `data_kept`.

    The workload is cached for 2 seconds, as clients poll.
    """

    def __init__(
        self,
        source: WorkloadStore,
        capacities: Mapping[str, FleetCapacity],
        *,
        data_kept: float,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._capacities = capacities
        self._data_kept = data_kept
        self._timer = timer
        self._cache: tuple[float, Workloads] | None = None

    def with_eta(self, batch: Batch) -> Batch:
        """Return the batch with its ETA, the likely end of its forecast, or the end of its data."""
        if batch.ended_at is not None:
            kept = self._data_kept if batch.retention is None else batch.retention
            end = batch.data_ended_at or batch.ended_at + timedelta(seconds=kept)
            return replace(batch, data_ends_at=end)
        if batch.status is not BatchStatus.IN_PROGRESS:
            return batch
        forecast = self.workloads().forecast(batch, self._capacities)
        return replace(batch, eta=None if forecast is None else forecast.likely)

    def measured_rate(self, fleet: str, model: str | None) -> float | None:
        """Return a replica's measured requests per second for a model; None if unmeasured."""
        workload = self.workloads().of(fleet)
        rates = (workload.measured_rate(pool, model) for pool in Pool)
        return next((rate for rate in rates if rate is not None), None)

    def workloads(self) -> Workloads:
        """Return the open work of all tenants, at most 2 seconds old."""
        now = self._timer()
        if self._cache is None or now - self._cache[0] > _MAX_AGE_SECONDS:
            self._cache = now, self._source.read()
        return self._cache[1]

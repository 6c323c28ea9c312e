"""Rates and concurrency that workers measured, kept while none runs; telemetry of workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.core.pools import FleetPool, Pool
from lowtide.database.connections import begin
from lowtide.planning.demand import Rate, RateSample

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import LeaseId
    from lowtide.engines.telemetry import EngineTelemetry


_REPORT = text("""
UPDATE workers SET full_lines = :lines, full_seconds = :seconds, input_token_rate = :input_rate,
  output_token_rate = :output_rate, concurrency = :concurrency, engine_running = :running,
  engine_waiting = :waiting, engine_kv_cache = :kv_cache
WHERE id = :lease
""")
# SKIP LOCKED: a worker that is renewing its lease is read at the next tick. Totals are compared,
# not added up, so no report counts twice. A worker whose claims are all of one model is a sample
# of that model.
_NEW_SAMPLES = text("""
WITH due AS (
  SELECT id, fleet, pool, full_lines - folded_lines AS lines, full_seconds - folded_seconds AS seconds
  FROM workers WHERE full_seconds > folded_seconds FOR NO KEY UPDATE SKIP LOCKED
), folded AS (
  UPDATE workers w SET folded_lines = w.full_lines, folded_seconds = w.full_seconds
  FROM due WHERE w.id = due.id
)
SELECT due.fleet, due.pool, due.lines, due.seconds, held.model FROM due CROSS JOIN LATERAL (
  SELECT CASE WHEN min(b.model) = max(b.model) THEN min(b.model) ELSE '' END AS model
  FROM claimed_runs c JOIN batches b ON b.id = c.batch_id WHERE c.lease_id = due.id) held
ORDER BY due.id
""")
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('fold rates', 0))")
_RATES = text("SELECT fleet, pool, model, seconds, lines, squares, weights FROM service_rates")
_STORE = text("""
INSERT INTO service_rates (fleet, pool, model, seconds, lines, squares, weights)
VALUES (:fleet, :pool, :model, :seconds, :lines, :squares, :weights)
ON CONFLICT (fleet, pool, model) DO UPDATE SET seconds = excluded.seconds, lines = excluded.lines,
  squares = excluded.squares, weights = excluded.weights, updated_at = now()
""")

_FOUND = text("""
SELECT concurrency FROM found_concurrency
WHERE fleet = :fleet AND pool = :pool AND model_revision = :revision
""")
_RECORD_FOUND = text("""
INSERT INTO found_concurrency (fleet, pool, concurrency, model_revision)
VALUES (:fleet, :pool, :concurrency, :revision)
ON CONFLICT (fleet, pool) DO UPDATE SET concurrency = excluded.concurrency,
  model_revision = excluded.model_revision, updated_at = now()
""")

Rates = dict[tuple[str, Pool, str], Rate]
"""Rates by fleet, pool and model."""


@dataclass(frozen=True, slots=True)
class WorkerTelemetry:
    """A worker's input and output tokens per second, and what its engine last reported.

    `concurrency` is its max number of requests in flight.
    """

    input_rate: float
    output_rate: float
    concurrency: int
    engine: EngineTelemetry | None = None


class RateStore:
    """Record rates and telemetry of leases, and fold rates into one per fleet, pool and model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def report(
        self, lease: LeaseId, total: RateSample, telemetry: WorkerTelemetry | None = None
    ) -> None:
        """Record the requests that a worker ended while full, since its lease was opened.

        And its last telemetry, if there is any yet.
        """
        engine = None if telemetry is None else telemetry.engine
        parameters = {
            "lease": lease,
            "lines": total.lines,
            "seconds": total.seconds,
            "input_rate": telemetry and telemetry.input_rate,
            "output_rate": telemetry and telemetry.output_rate,
            "concurrency": telemetry and telemetry.concurrency,
            "running": engine and engine.running,
            "waiting": engine and engine.waiting,
            "kv_cache": engine and engine.kv_cache,
        }
        with begin(self._engine) as connection:
            connection.execute(_REPORT, parameters)

    def fold(self) -> Rates:
        """Fold the reports since the last call; return all rates."""
        with begin(self._engine) as connection:
            connection.execute(_LOCK)
            samples: dict[tuple[str, Pool, str], list[RateSample]] = {}
            for row in connection.execute(_NEW_SAMPLES):
                key = row.fleet, Pool(row.pool), row.model or ""
                samples.setdefault(key, []).append(RateSample(row.lines, row.seconds))
            rates = _read(connection)
            for key, new_samples in samples.items():
                rates[key] = rates.get(key, Rate()).fold(new_samples)
                _store(connection, key, rates[key])
        return rates


class ConcurrencyStore:
    """Remember the requests in flight that the last search of a fleet's pool found.

    A search on another `revision` of the model, or none yet, found nothing.
    """

    def __init__(self, engine: Engine, place: FleetPool, revision: str) -> None:
        self._engine = engine
        self._place = {"fleet": place.fleet, "pool": place.pool.value, "revision": revision}

    def read(self) -> int | None:
        """Return what was found last; None if nothing was."""
        with begin(self._engine) as connection:
            found: int | None = connection.execute(_FOUND, self._place).scalar_one_or_none()
            return found

    def record(self, concurrency: int) -> None:
        """Record what a search found."""
        with begin(self._engine) as connection:
            connection.execute(_RECORD_FOUND, {**self._place, "concurrency": concurrency})


def _read(connection: Connection) -> Rates:
    return {
        (row.fleet, Pool(row.pool), row.model): Rate(
            row.seconds, row.lines, row.squares, row.weights
        )
        for row in connection.execute(_RATES)
    }


def _store(connection: Connection, key: tuple[str, Pool, str], rate: Rate) -> None:
    fleet, pool, model = key
    connection.execute(
        _STORE,
        {
            "fleet": fleet,
            "pool": pool.value,
            "model": model,
            "seconds": rate.seconds,
            "lines": rate.lines,
            "squares": rate.squares,
            "weights": rate.weights,
        },
    )

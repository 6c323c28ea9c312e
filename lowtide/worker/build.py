"""Construction of a worker from the settings."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from lowtide.core.durations import ExponentialBackoff
from lowtide.core.ids import new_id
from lowtide.core.pools import FleetPool, Pool
from lowtide.engines.catalog import ModelCatalog
from lowtide.engines.concurrency import Concurrency
from lowtide.engines.flow import ByteBudget
from lowtide.engines.load import LoadMeter
from lowtide.engines.outcomes import RetryPolicy
from lowtide.engines.selection import build_engine
from lowtide.engines.spare import SpareConcurrency
from lowtide.fleets.file import read_fleets
from lowtide.queue.rates import ConcurrencyStore, RateStore
from lowtide.queue.store import QueueStore
from lowtide.settings import EngineShare
from lowtide.worker.engine_watch import EngineWatch
from lowtide.worker.inputs import InputLoader
from lowtide.worker.lease import LeaseKeeper, Utilization
from lowtide.worker.loop import Worker, WorkerRules
from lowtide.worker.results import FlushRules, ResultWriter
from lowtide.worker.telemetry import TelemetryReader
from lowtide.worker.tuning import ConcurrencyMemory, ConcurrencyTuner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from lowtide.batches.sealed_answers import Answers
    from lowtide.engines.model import Engine as InferenceEngine
    from lowtide.events.publisher import Publisher
    from lowtide.objects.store import ObjectStore
    from lowtide.settings import Settings
    from lowtide.telemetry.tracing import Tracer
    from lowtide.worker.loop import Beside
    from lowtide.worker.metrics import WorkerMetrics


def build_worker(
    settings: Settings,
    database: Engine,
    objects: ObjectStore,
    publisher: Publisher,
    answers: Answers,
    meter: WorkerMetrics,
    tracer: Tracer,
    *,
    pool: Pool,
    instance: str,
) -> Worker:
    """Return a worker of a pool with its own engine; `instance` names its leases."""
    utilization = Utilization(full=settings.max_concurrency)
    queue = QueueStore(
        database,
        new_id=new_id,
        lease_duration=settings.lease_duration,
        fleet=settings.fleet,
        model_revision=settings.model_revision,
    )
    keeper = LeaseKeeper(
        queue,
        RateStore(database),
        utilization,
        pool=pool,
        worker=instance,
        duration=settings.lease_duration,
    )
    rng = random.Random()  # noqa: S311
    budget = ByteBudget(settings.worker_memory)
    flush = FlushRules(interval=settings.worker_flush_interval)
    load_meter = LoadMeter()
    engine = build_engine(settings, budget, load_meter)
    watch = _watch(settings, engine, meter, rng)
    policy = RetryPolicy(settings.max_attempts, settings.retry_base, settings.retry_cap)
    return Worker(
        queue,
        engine,
        InputLoader(objects, budget, rng),
        keeper,
        ResultWriter(keeper, queue, publisher, meter, flush, budget, answers=answers),
        meter,
        ExponentialBackoff(settings.worker_poll_initial, settings.worker_poll_cap),
        ModelCatalog(database),
        budget,
        watch,
        rules=_rules(settings, pool),
        policy=policy,
        rng=rng,
        tracer=tracer,
        beside=[
            TelemetryReader(engine, watch, meter, keeper),
            *_tuning(settings, database, pool, engine, load_meter, watch, utilization),
        ],
    )


def _watch(
    settings: Settings, engine: InferenceEngine, meter: WorkerMetrics, rng: random.Random
) -> EngineWatch:
    return EngineWatch(
        engine,
        meter,
        concurrency=settings.max_concurrency,
        cap=settings.retry_cap,
        patience=settings.cold_start,
        rng=rng,
    )


def _tuning(
    settings: Settings,
    database: Engine,
    pool: Pool,
    engine: InferenceEngine,
    meter: LoadMeter,
    watch: EngineWatch,
    utilization: Utilization,
) -> Sequence[Beside]:
    if settings.engine_share is EngineShare.SPARE and pool is Pool.SPOT:
        # What was spare once says nothing about now.
        spare = SpareConcurrency(settings.max_concurrency, settings.engine_first_token_target)
        return [ConcurrencyTuner(engine, meter, watch, utilization, spare)]
    if settings.concurrency is not None:
        return []
    search = Concurrency(settings.max_concurrency)
    tuner = ConcurrencyTuner(engine, meter, watch, utilization, search)
    place = FleetPool(settings.fleet, pool)
    store = ConcurrencyStore(database, place, settings.model_revision)
    return [tuner, ConcurrencyMemory(store, search, tuner)]


def _rules(settings: Settings, pool: Pool) -> WorkerRules:
    return WorkerRules(
        pool=pool,
        prefetch=settings.prefetch,
        grace=settings.worker_grace,
        served_names=read_fleets(settings).served_names(settings.fleet),
    )

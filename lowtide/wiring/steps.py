"""The services behind events: split, infer, finalize, schedule."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import TYPE_CHECKING

from lowtide.domain.backoff import ExponentialBackoff
from lowtide.domain.outcomes import RetryPolicy
from lowtide.domain.pools import Pool
from lowtide.domain.sightings import Sight
from lowtide.settings import read_settings
from lowtide.wiring.api import models, prices
from lowtide.wiring.base import (
    capacity,
    database,
    instance,
    line_limits,
    new_id,
    objects,
    publisher,
    sightings,
    tracer,
)

if TYPE_CHECKING:
    from lowtide.postgres.vitals import PostgresVitals
    from lowtide.services.finalizing import Finalizer
    from lowtide.services.inference import Worker
    from lowtide.services.scheduling import Scheduler
    from lowtide.services.splitting import Splitter


@lru_cache(maxsize=1)
def splitter() -> Splitter:
    """Return the service that splits files."""
    from lowtide.postgres.splits import PostgresSplits
    from lowtide.services.splitting import Splitter

    return Splitter(PostgresSplits(database()), objects(), line_limits(), tracer=tracer())


@lru_cache(maxsize=1)
def finalizer() -> Finalizer:
    """Return the service that writes output files."""
    from lowtide.postgres.finals import PostgresFinals
    from lowtide.services.finalizing import Finalizer

    return Finalizer(
        PostgresFinals(database()), objects(), publisher(), new_id=new_id, tracer=tracer()
    )


@lru_cache(maxsize=1)
def scheduler() -> Scheduler:
    """Return the service behind a tick."""
    from lowtide.postgres.history import PostgresRecorder
    from lowtide.postgres.rates import PostgresRates
    from lowtide.postgres.ticks import PostgresTicks
    from lowtide.postgres.timetable import PostgresTimetable
    from lowtide.services.scheduling import PoolScale, Scheduler, TickRules

    settings = read_settings()
    rules = TickRules(
        capacity=capacity(),
        scales={
            Pool.SPOT: PoolScale(settings.spot_rows_per_replica, settings.spot_replicas),
            Pool.DEDICATED: PoolScale(
                settings.dedicated_rows_per_replica, settings.dedicated_replicas
            ),
        },
        cancel_grace=settings.cancel_grace,
        stalled_after=settings.stalled_after,
        history_kept=settings.history_retention,
        audit_kept=settings.audit_retention,
    )
    ticks = PostgresTicks(database(), new_id=new_id, max_lost_leases=settings.max_lost_leases)
    timetable = PostgresTimetable(database(), new_id=new_id)
    return Scheduler(
        ticks,
        timetable,
        PostgresRates(database()),
        PostgresRecorder(database()),
        objects(),
        publisher(),
        rules,
    )


@lru_cache(maxsize=1)
def vitals() -> PostgresVitals:
    """Return what alerts look at."""
    from lowtide.postgres.vitals import PostgresVitals

    return PostgresVitals(database())


def build_worker(pool: Pool) -> Worker:
    """Return a worker of a pool, with an engine of its own."""
    from lowtide.domain.budgets import ByteBudget
    from lowtide.engines.selection import build_engine
    from lowtide.metrics.worker import PrometheusMeter
    from lowtide.postgres.queue import PostgresQueue
    from lowtide.postgres.rates import PostgresRates
    from lowtide.services.engine_watch import EngineWatch
    from lowtide.services.inference import Worker, WorkerRules
    from lowtide.services.leases import LeaseKeeper
    from lowtide.services.loading import InputLoader
    from lowtide.services.pace import Pace
    from lowtide.services.settling import FlushRules, Settler
    from lowtide.services.sightings import SightedEngine

    settings = read_settings()
    queue = PostgresQueue(database(), new_id=new_id, lease_duration=settings.lease_duration)
    keeper = LeaseKeeper(
        queue,
        PostgresRates(database()),
        Pace(full=settings.worker_concurrency),
        pool=pool,
        worker=instance(),
        duration=settings.lease_duration,
    )
    sightings().note(Sight.FUNCTION, f"infer_{pool}")
    meter = PrometheusMeter(pool, prices(), SightedEngine(sightings(), pool).answered)
    rng = random.Random()  # noqa: S311
    budget = ByteBudget(settings.worker_memory)
    flush = FlushRules(settings.worker_flush_lines, settings.worker_flush_interval)
    engine = build_engine(settings, budget)
    watch = EngineWatch(
        engine,
        meter,
        concurrency=settings.worker_concurrency,
        cap=settings.retry_cap,
        patience=settings.cold_start,
        rng=rng,
    )
    return Worker(
        queue,
        engine,
        InputLoader(objects(), budget, rng),
        keeper,
        Settler(keeper, queue, publisher(), meter, flush, budget),
        meter,
        ExponentialBackoff(settings.worker_poll_initial, settings.worker_poll_cap),
        models(),
        budget,
        watch,
        rules=WorkerRules(
            pool=pool,
            concurrency=settings.worker_concurrency,
            prefetch=settings.worker_prefetch,
            claim_size=settings.worker_claim_size,
            grace=settings.worker_grace,
        ),
        policy=RetryPolicy(settings.max_attempts, settings.retry_base, settings.retry_cap),
        rng=rng,
        tracer=tracer(),
    )

"""The one place that builds adapters from the settings and hands them to the services."""

from __future__ import annotations

import os
import random
import socket
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from lowtide.domain.backoff import ExponentialBackoff
from lowtide.domain.dead_letters import MOST_LETTERS
from lowtide.domain.ids import uuid7
from lowtide.domain.lines import Limits
from lowtide.domain.outcomes import RetryPolicy
from lowtide.domain.pools import Pool
from lowtide.events.sink import HttpSink, NoSink
from lowtide.objects.store import ObstoreObjects
from lowtide.postgres.connections import connect
from lowtide.postgres.outbox import PostgresOutbox
from lowtide.services.publishing import Publisher
from lowtide.settings import Admission, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from sqlalchemy import Engine

    from lowtide.domain.demand import Capacity
    from lowtide.domain.pricing import Prices
    from lowtide.postgres.models import PostgresModels
    from lowtide.postgres.tenants import PostgresTenants
    from lowtide.services.batches import Batches
    from lowtide.services.dead_letters import DeadLetters
    from lowtide.services.files import Files
    from lowtide.services.finalizing import Finalizer
    from lowtide.services.forecasts import Forecaster
    from lowtide.services.inference import Worker
    from lowtide.services.requests import Requests
    from lowtide.services.requeueing import Requeuer
    from lowtide.services.scheduling import Scheduler
    from lowtide.services.splitting import Splitter
    from lowtide.services.tenancy import Tenancy


def now() -> datetime:
    """Return the current time."""
    return datetime.now(UTC)


def new_id() -> UUID:
    """Return a time-ordered id."""
    return uuid7(now(), os.urandom)


@lru_cache(maxsize=1)
def database() -> Engine:
    """Return the process's connections."""
    settings = read_settings()
    return connect(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool_size,
        timeout=settings.database_timeout,
        application=f"lowtide {os.environ.get('FUNCTION_TARGET', '')}".strip(),
    )


@lru_cache(maxsize=1)
def objects() -> ObstoreObjects:
    """Return the object store."""
    return ObstoreObjects(read_settings().object_store_url)


@lru_cache(maxsize=1)
def publisher() -> Publisher:
    """Return the way events go out."""
    settings = read_settings()
    source = f"/lowtide/{os.environ.get('FUNCTION_TARGET', 'cli')}"
    sink = (
        NoSink()
        if settings.event_sink is None
        else HttpSink(settings.event_sink, source=source, timeout=settings.event_sink_timeout)
    )
    return Publisher(sink, PostgresOutbox(database()))


def line_limits() -> Limits:
    """Return the bounds on input files."""
    settings = read_settings()
    return Limits(max_lines=settings.max_batch_lines, max_line_bytes=settings.max_line_bytes)


@lru_cache(maxsize=1)
def tenants() -> PostgresTenants:
    """Return who may call."""
    from lowtide.postgres.tenants import PostgresTenants

    settings = read_settings()
    return PostgresTenants(
        database(),
        pepper=settings.api_key_pepper.get_secret_value(),
        anonymous=settings.anonymous_tenant,
    )


@contextmanager
def open_tenancy(url: str, pepper: str, *, actor: str) -> Iterator[Tenancy]:
    """Open an operator's service of tenants and keys, on the database at `url`."""
    from lowtide.auth.keys import new_key
    from lowtide.domain.limits import TenantLimits
    from lowtide.postgres.tenant_registry import PostgresTenantRegistry
    from lowtide.services.tenancy import Tenancy

    settings = read_settings()
    defaults = TenantLimits(
        requests_per_minute=settings.tenant_requests_per_minute,
        active_batches=settings.tenant_active_batches,
        queued_lines=settings.tenant_queued_lines,
        running_lines=settings.tenant_running_lines,
    )
    engine = connect(url, pool_size=1, timeout=settings.database_timeout)
    try:
        registry = PostgresTenantRegistry(engine, pepper=pepper)
        yield Tenancy(registry, defaults, actor=actor, new_id=new_id, new_key=new_key, clock=now)
    finally:
        engine.dispose()


@lru_cache(maxsize=1)
def files() -> Files:
    """Return the service of files."""
    from lowtide.postgres.files import PostgresFiles
    from lowtide.services.files import Files, UploadLimits

    settings = read_settings()
    limits = UploadLimits(
        settings.max_file_bytes, settings.file_expiry, line_limits(), settings.endpoints
    )
    return Files(PostgresFiles(database()), objects(), limits, new_id=new_id, clock=now)


@lru_cache(maxsize=1)
def batches() -> Batches:
    """Return the service of batches."""
    from lowtide.domain.promises import AdmissionPolicy
    from lowtide.postgres.batches import PostgresBatches
    from lowtide.postgres.files import PostgresFiles
    from lowtide.services.batches import Batches, BatchRules

    settings = read_settings()
    rules = BatchRules(
        settings.endpoints,
        settings.shortest_window,
        settings.longest_window,
        AdmissionPolicy(capacity(), strict=settings.admission is Admission.STRICT),
    )
    return Batches(
        PostgresBatches(database()),
        PostgresFiles(database()),
        publisher(),
        forecaster(),
        rules,
        new_id=new_id,
        clock=now,
    )


@lru_cache(maxsize=1)
def forecaster() -> Forecaster:
    """Return what tells when batches will be done."""
    from lowtide.postgres.outlook import PostgresOutlook
    from lowtide.services.forecasts import Forecaster

    return Forecaster(PostgresOutlook(database()), prior=read_settings().dedicated_rate)


def capacity() -> Capacity:
    """Return what dedicated workers can do."""
    from lowtide.domain.demand import Capacity

    settings = read_settings()
    return Capacity(
        rate=settings.dedicated_rate,
        replicas=settings.dedicated_replicas,
        cold_start=settings.cold_start,
        margin=settings.safety_margin,
        tick=settings.tick,
        in_flight=settings.worker_concurrency,
    )


@lru_cache(maxsize=1)
def prices() -> Prices:
    """Return what replicas cost."""
    from lowtide.domain.pricing import Prices

    settings = read_settings()
    return Prices(settings.spot_price, settings.dedicated_price, settings.currency)


@lru_cache(maxsize=1)
def requests() -> Requests:
    """Return the service that looks into batches."""
    from lowtide.postgres.batches import PostgresBatches
    from lowtide.postgres.requests import PostgresRequests
    from lowtide.services.requests import Requests

    return Requests(PostgresBatches(database()), PostgresRequests(database()))


@lru_cache(maxsize=1)
def dead_letters() -> DeadLetters:
    """Return the service that shows and discards dead letters."""
    from lowtide.postgres.dead_letters import PostgresDeadLetters
    from lowtide.postgres.requeues import PostgresRequeues
    from lowtide.services.dead_letters import DeadLetters

    return DeadLetters(
        PostgresDeadLetters(database()),
        PostgresRequeues(database()),
        objects(),
        most=_most_letters(),
    )


@lru_cache(maxsize=1)
def requeuer() -> Requeuer:
    """Return the service that runs dead letters again."""
    from lowtide.postgres.dead_letters import PostgresDeadLetters
    from lowtide.postgres.files import PostgresFiles
    from lowtide.postgres.requeues import PostgresRequeues
    from lowtide.services.requeueing import Requeuer, RequeueRules

    settings = read_settings()
    rules = RequeueRules(
        most=_most_letters(),
        shortest_window=settings.shortest_window,
        longest_window=settings.longest_window,
        file_expiry=settings.file_expiry,
    )
    return Requeuer(
        PostgresDeadLetters(database()),
        PostgresRequeues(database()),
        PostgresFiles(database()),
        objects(),
        publisher(),
        rules,
        new_id=new_id,
        clock=now,
    )


def _most_letters() -> int:
    """Return how many letters a call takes: all of them may go into one new batch."""
    return min(MOST_LETTERS, read_settings().max_batch_lines)


@lru_cache(maxsize=1)
def models() -> PostgresModels:
    """Return the models that are served."""
    from lowtide.postgres.models import PostgresModels

    return PostgresModels(database())


@lru_cache(maxsize=1)
def splitter() -> Splitter:
    """Return the service that splits files."""
    from lowtide.postgres.splits import PostgresSplits
    from lowtide.services.splitting import Splitter

    return Splitter(
        PostgresSplits(database()), objects(), publisher(), line_limits(), new_id=new_id
    )


@lru_cache(maxsize=1)
def finalizer() -> Finalizer:
    """Return the service that writes output files."""
    from lowtide.postgres.finals import PostgresFinals
    from lowtide.services.finalizing import Finalizer

    return Finalizer(PostgresFinals(database()), objects(), publisher(), new_id=new_id)


@lru_cache(maxsize=1)
def scheduler() -> Scheduler:
    """Return the service behind a tick."""
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
    )
    ticks = PostgresTicks(database(), new_id=new_id, max_lost_leases=settings.max_lost_leases)
    timetable = PostgresTimetable(database(), new_id=new_id)
    return Scheduler(ticks, timetable, PostgresRates(database()), objects(), publisher(), rules)


def build_worker(pool: Pool) -> Worker:
    """Return a worker of a pool, with an engine of its own."""
    from lowtide.engines.selection import build_engine
    from lowtide.metrics.worker import PrometheusMeter
    from lowtide.postgres.queue import PostgresQueue
    from lowtide.postgres.rates import PostgresRates
    from lowtide.services.inference import Worker, WorkerRules
    from lowtide.services.leases import LeaseKeeper
    from lowtide.services.pace import Pace
    from lowtide.services.settling import FlushRules, Settler

    settings = read_settings()
    queue = PostgresQueue(database(), new_id=new_id, lease_duration=settings.lease_duration)
    name = f"{socket.gethostname()}/{os.getpid()}"
    keeper = LeaseKeeper(
        queue,
        PostgresRates(database()),
        Pace(full=settings.worker_concurrency),
        pool=pool,
        worker=name,
        duration=settings.lease_duration,
    )
    meter = PrometheusMeter(pool)
    flush = FlushRules(settings.worker_flush_lines, settings.worker_flush_interval)
    return Worker(
        queue,
        build_engine(settings),
        objects(),
        keeper,
        Settler(keeper, queue, publisher(), meter, flush),
        meter,
        ExponentialBackoff(settings.worker_poll_initial, settings.worker_poll_cap),
        models(),
        rules=WorkerRules(
            pool=pool,
            concurrency=settings.worker_concurrency,
            prefetch=settings.worker_prefetch,
            claim_size=settings.worker_claim_size,
            grace=settings.worker_grace,
        ),
        policy=RetryPolicy(settings.max_attempts, settings.retry_base, settings.retry_cap),
        rng=random.Random(),  # noqa: S311
    )

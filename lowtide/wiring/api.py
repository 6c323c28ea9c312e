"""The services behind the API: what tenants ask for."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from lowtide.domain.dead_letters import MOST_LETTERS
from lowtide.domain.pools import Pool
from lowtide.settings import read_settings
from lowtide.wiring.base import (
    admission_policy,
    database,
    line_limits,
    new_id,
    now,
    objects,
    publisher,
    tracer,
)

if TYPE_CHECKING:
    from lowtide.domain.pricing import Prices
    from lowtide.postgres.models import PostgresModels
    from lowtide.postgres.tenants import PostgresTenants
    from lowtide.services.batches import Batches
    from lowtide.services.dead_letters import DeadLetters
    from lowtide.services.files import Files
    from lowtide.services.forecasts import Forecaster
    from lowtide.services.requests import Requests
    from lowtide.services.requeueing import Requeuer, RequeueRules


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


@lru_cache(maxsize=1)
def files() -> Files:
    """Return the service of files."""
    from lowtide.postgres.files import PostgresFiles
    from lowtide.services.files import Files, UploadLimits

    settings = read_settings()
    limits = UploadLimits(
        settings.max_file_bytes, settings.file_expiry, line_limits(), settings.endpoints
    )
    return Files(
        PostgresFiles(database()), objects(), limits, new_id=new_id, clock=now, tracer=tracer()
    )


@lru_cache(maxsize=1)
def batches() -> Batches:
    """Return the service of batches."""
    from lowtide.postgres.batches import PostgresBatches
    from lowtide.postgres.files import PostgresFiles
    from lowtide.services.batches import Batches, BatchRules

    settings = read_settings()
    rules = BatchRules(
        settings.endpoints,
        settings.shortest_window,
        settings.longest_window,
        admission_policy(),
    )
    return Batches(
        PostgresBatches(database()),
        PostgresFiles(database()),
        publisher(),
        forecaster(),
        rules,
        new_id=new_id,
        clock=now,
        tracer=tracer(),
    )


@lru_cache(maxsize=1)
def forecaster() -> Forecaster:
    """Return what tells when batches will be done."""
    from lowtide.postgres.outlook import PostgresOutlook
    from lowtide.services.forecasts import Forecaster

    return Forecaster(PostgresOutlook(database()), prior=read_settings().dedicated_rate)


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
        most=requeue_rules().most,
    )


@lru_cache(maxsize=1)
def requeuer() -> Requeuer:
    """Return the service that runs dead letters again."""
    from lowtide.postgres.dead_letters import PostgresDeadLetters
    from lowtide.postgres.files import PostgresFiles
    from lowtide.postgres.requeues import PostgresRequeues
    from lowtide.services.requeueing import Requeuer

    return Requeuer(
        PostgresDeadLetters(database()),
        PostgresRequeues(database()),
        PostgresFiles(database()),
        objects(),
        publisher(),
        requeue_rules(),
        new_id=new_id,
        clock=now,
        tracer=tracer(),
    )


def requeue_rules() -> RequeueRules:
    """Return what a requeue takes: all of its letters may go into one new batch."""
    from lowtide.services.requeueing import RequeueRules

    settings = read_settings()
    replicas = {Pool.SPOT: settings.spot_replicas, Pool.DEDICATED: settings.dedicated_replicas}
    return RequeueRules(
        most=min(MOST_LETTERS, settings.max_batch_lines),
        shortest_window=settings.shortest_window,
        longest_window=settings.longest_window,
        file_expiry=settings.file_expiry,
        closed=frozenset(pool for pool, most in replicas.items() if not most),
        admission=admission_policy(),
    )


@lru_cache(maxsize=1)
def models() -> PostgresModels:
    """Return the models that are served."""
    from lowtide.postgres.models import PostgresModels

    return PostgresModels(database())

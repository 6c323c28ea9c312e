"""The services that pages act with, on the connections that fit who looks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from lowtide import wiring
from lowtide.domain.pools import Pool
from lowtide.postgres.batches import PostgresBatches
from lowtide.postgres.dead_letters import PostgresDeadLetters
from lowtide.postgres.files import PostgresFiles
from lowtide.postgres.outlook import PostgresOutlook
from lowtide.postgres.requeues import PostgresRequeues
from lowtide.postgres.tenant_registry import PostgresTenantRegistry
from lowtide.services.batches import Batches, BatchRules
from lowtide.services.dead_letters import DeadLetters
from lowtide.services.files import Files, UploadLimits
from lowtide.services.requeueing import Requeuer
from lowtide.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from lowtide.domain.ids import TenantId
    from lowtide.domain.visitors import Visitor


@dataclass(frozen=True, slots=True)
class Desk:
    """What a visitor's pages work with."""

    letters: DeadLetters
    requeuer: Requeuer
    files: Files
    batches: Batches


def desk_for(visitor: Visitor) -> Desk:
    """Return the services for a visitor; row-level security holds one of a tenant to it."""
    return _desk(wiring.database_for(visitor))


def tenants_for(visitor: Visitor) -> Mapping[TenantId, str]:
    """Return the names of the tenants that a visitor may choose from, by name; reads the database.

    Nobody chooses who signed in for one tenant.
    """
    if visitor.tenant is not None:
        return {visitor.tenant: ""}
    registry = PostgresTenantRegistry(wiring.database(), pepper="")
    return {tenant.id: tenant.name for tenant in registry.tenants()}


def measured_rate(model: str | None) -> float | None:
    """Return the lines a second of a replica that runs a model, by what workers reported."""
    rates = PostgresOutlook(wiring.database()).look().rates
    for pool in Pool:
        for name in (model, ""):
            rate = None if name is None else rates.get((pool, name))
            if rate is not None and rate.mean:
                return rate.mean
    return None


@lru_cache(maxsize=2)
def _desk(engine: Engine) -> Desk:
    settings = read_settings()
    catalog, desk, files = (
        PostgresDeadLetters(engine),
        PostgresRequeues(engine),
        PostgresFiles(engine),
    )
    objects, publisher = wiring.objects(), wiring.publisher()
    new_id, clock = wiring.new_id, wiring.now
    requeue_rules = wiring.requeue_rules()
    limits = UploadLimits(
        settings.max_file_bytes, settings.file_expiry, wiring.line_limits(), settings.endpoints
    )
    batch_rules = BatchRules(
        settings.endpoints,
        settings.shortest_window,
        settings.longest_window,
        wiring.admission_policy(),
    )
    return Desk(
        DeadLetters(catalog, desk, objects, most=requeue_rules.most),
        Requeuer(
            catalog,
            desk,
            files,
            objects,
            publisher,
            requeue_rules,
            new_id=new_id,
            clock=clock,
            tracer=wiring.tracer(),
        ),
        Files(files, objects, limits, new_id=new_id, clock=clock, tracer=wiring.tracer()),
        Batches(
            PostgresBatches(engine),
            files,
            publisher,
            wiring.forecaster(),
            batch_rules,
            new_id=new_id,
            clock=clock,
            tracer=wiring.tracer(),
        ),
    )

"""What operators use beside the API."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from lowtide.postgres.connections import connect
from lowtide.settings import read_settings
from lowtide.wiring.api import prices
from lowtide.wiring.base import database, new_id, now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from lowtide.services.administration import Administration
    from lowtide.services.pools import Pools
    from lowtide.services.tenancy import Tenancy


@contextmanager
def open_tenancy(url: str, pepper: str, *, actor: str) -> Iterator[Tenancy]:
    """Open an operator's service of tenants and keys, on the database at `url`."""
    engine = connect(url, pool_size=1, timeout=read_settings().database_timeout)
    try:
        yield _tenancy(engine, pepper, actor)
    finally:
        engine.dispose()


@lru_cache(maxsize=1)
def administration() -> Administration:
    """Return the service that shows tenants, keys and the audit log, and lets operators act."""
    from lowtide.postgres.api_keys import PostgresKeyListing
    from lowtide.postgres.audit_log import PostgresAuditLog
    from lowtide.postgres.tenant_registry import PostgresTenantRegistry
    from lowtide.postgres.tenant_usage import PostgresTenantUsage
    from lowtide.services.administration import Administration

    engine, pepper = database(), read_settings().api_key_pepper.get_secret_value()
    return Administration(
        PostgresTenantRegistry(engine, pepper=pepper),
        PostgresTenantUsage(engine),
        PostgresKeyListing(engine),
        PostgresAuditLog(engine),
        prices(),
        lambda actor: _tenancy(engine, pepper, actor),
    )


def _tenancy(engine: Engine, pepper: str, actor: str) -> Tenancy:
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
    registry = PostgresTenantRegistry(engine, pepper=pepper)
    return Tenancy(registry, defaults, actor=actor, new_id=new_id, new_key=new_key, clock=now)


@contextmanager
def open_pools(url: str) -> Iterator[Pools]:
    """Open an operator's service of pools, on the database at `url`."""
    from lowtide.postgres.pools import PostgresPools
    from lowtide.services.pools import Pools

    engine = connect(url, pool_size=1, timeout=read_settings().database_timeout)
    try:
        yield Pools(PostgresPools(engine))
    finally:
        engine.dispose()

"""What operators use beside the API."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lowtide.postgres.connections import connect
from lowtide.settings import read_settings
from lowtide.wiring.base import new_id, now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.services.pools import Pools
    from lowtide.services.tenancy import Tenancy


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


@contextmanager
def open_pools(url: str) -> Iterator[Pools]:
    """Open an operator's service of pools, on the database at `url`.

    Its events wait in the outbox for the next tick: the command knows no broker.
    """
    from lowtide.events.sink import NoSink
    from lowtide.postgres.outbox import PostgresOutbox
    from lowtide.postgres.pools import PostgresPools
    from lowtide.services.pools import Pools
    from lowtide.services.publishing import Publisher

    engine = connect(url, pool_size=1, timeout=read_settings().database_timeout)
    try:
        yield Pools(
            PostgresPools(engine, new_id=new_id), Publisher(NoSink(), PostgresOutbox(engine))
        )
    finally:
        engine.dispose()

"""What the portal is built from: one side for operators, one for who signed in with a key."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from lowtide.domain.errors import Unavailable
from lowtide.domain.visitors import Role
from lowtide.postgres.connections import connect
from lowtide.settings import read_settings
from lowtide.wiring.api import prices
from lowtide.wiring.base import database, new_id, objects, publisher

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from lowtide.domain.visitors import Visitor
    from lowtide.ports import SignIn
    from lowtide.postgres.signed_out import PostgresSignedOut
    from lowtide.services.batch_details import BatchBrowser
    from lowtide.services.batch_lists import BatchDesk, BatchLists
    from lowtide.services.entrance import Entrance
    from lowtide.services.pools import Pools


def database_for(visitor: Visitor) -> Engine:
    """Return the connections that read and act for a visitor.

    Row-level security holds who signed in with a key to their tenant; the operator's role sees all.
    """
    return database() if visitor.tenant is None else tenant_database()


@lru_cache(maxsize=1)
def tenant_database() -> Engine:
    """Return the connections as the role `lowtide_api`; raises Unavailable without a setting."""
    settings = read_settings()
    url = settings.portal_tenant_database_url.get_secret_value()
    if not url:
        raise Unavailable("LOWTIDE_PORTAL_TENANT_DATABASE_URL is not set: no tenant can be read.")
    return connect(
        url,
        pool_size=settings.database_pool_size,
        timeout=settings.database_timeout,
        application="lowtide portal, tenants",
    )


@lru_cache(maxsize=1)
def entrance() -> Entrance:
    """Return who lets people in: by password, and with an API key where tenants can be read."""
    from lowtide.auth.passwords import PasswordSignIn
    from lowtide.postgres.tenants import PostgresTenants
    from lowtide.postgres.visitors import KeySignIn
    from lowtide.services.entrance import Entrance

    settings = read_settings()
    ways: list[SignIn] = []
    pepper = settings.api_key_pepper.get_secret_value()
    if settings.portal_tenant_database_url.get_secret_value() and pepper:
        tenants = PostgresTenants(tenant_database(), pepper=pepper, anonymous=None)
        ways.append(KeySignIn(tenants, settings.portal_key_role))
    for stored, role in (
        (settings.portal_password_hash, Role.OPERATOR),
        (settings.portal_viewer_password_hash, Role.VIEWER),
    ):
        if stored.get_secret_value():
            ways.append(PasswordSignIn(stored.get_secret_value(), role))
    return Entrance(ways, timer=time.monotonic)


def signed_out() -> PostgresSignedOut:
    """Return where sessions are kept that were signed out before their time."""
    from lowtide.postgres.signed_out import PostgresSignedOut

    return PostgresSignedOut(database())


@dataclass(frozen=True, slots=True)
class Desks:
    """What a visitor's pages about batches ask."""

    lists: BatchLists
    browser: BatchBrowser
    desk: BatchDesk


def desks_for(visitor: Visitor) -> Desks:
    """Return the services that read and act with a visitor's rights."""
    return _desks(operators=visitor.tenant is None)


@lru_cache(maxsize=2)
def _desks(*, operators: bool) -> Desks:
    from lowtide.postgres.batch_details import PostgresBatchDetails
    from lowtide.postgres.batch_lists import PostgresBatchLists
    from lowtide.postgres.batches import PostgresBatches
    from lowtide.postgres.outlook import PostgresOutlook
    from lowtide.services.batch_details import BatchBrowser
    from lowtide.services.batch_lists import BatchDesk, BatchLists
    from lowtide.services.forecasts import Forecaster

    engine = database() if operators else tenant_database()
    listing = PostgresBatchLists(engine)
    forecaster = Forecaster(PostgresOutlook(engine), prior=read_settings().dedicated_rate)
    return Desks(
        BatchLists(listing),
        BatchBrowser(PostgresBatchDetails(engine), objects(), forecaster, prices()),
        BatchDesk(listing, PostgresBatches(engine), publisher(), new_id=new_id),
    )


@lru_cache(maxsize=1)
def pools() -> Pools:
    """Return the service that pauses and resumes pools."""
    from lowtide.postgres.pools import PostgresPools
    from lowtide.services.pools import Pools

    return Pools(PostgresPools(database()))

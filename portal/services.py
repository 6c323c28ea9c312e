"""The portal's App and services, and blocking calls off the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar, cast

from nicegui import app, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowtide.app import App
    from lowtide.core.ids import TenantId
    from lowtide.services import Services
    from lowtide.tenants.sign_in import Principal

_Result = TypeVar("_Result")


def lowtide() -> App:
    """Return the App that the portal was built with."""
    return cast("App", app.state.lowtide)


def services_for(principal: Principal) -> Services:
    """Return the services with a principal's rights.

    Raises Unavailable for a tenant's principal while no database URL for tenants is set.
    """
    return lowtide().services_for(principal)


def tenants_for(principal: Principal) -> Mapping[TenantId, str]:
    """Return the tenants that a principal may choose from, sorted by name; reads the database.

    A principal of one tenant has no choice: its tenant comes with an empty name.
    """
    if principal.tenant is not None:
        return {principal.tenant: ""}
    return lowtide().administration.names(principal)


async def in_thread(call: Callable[[], _Result]) -> _Result:
    """Run a blocking call in a thread; raises CancelledError if the portal stops."""
    # Shutdown does not wait for NiceGUI's thread pool, unlike asyncio's default executor.
    result = await run.io_bound(lambda: (call(),))
    if result is None:
        raise asyncio.CancelledError
    return result[0]

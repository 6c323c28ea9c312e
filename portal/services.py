"""The App of the portal, the services for its visitors, and calls beside the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar, cast

from nicegui import app, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowtide.app import App
    from lowtide.core.ids import TenantId
    from lowtide.services import Services
    from lowtide.tenants.sign_in import Visitor

_Result = TypeVar("_Result")


def lowtide() -> App:
    """Return the App that the portal was built with."""
    return cast("App", app.state.lowtide)


def services_for(visitor: Visitor) -> Services:
    """Return the services with a visitor's rights; raises Unavailable where no tenant can be read."""
    return lowtide().services_for(visitor)


def tenants_for(visitor: Visitor) -> Mapping[TenantId, str]:
    """Return the names of the tenants that a visitor may choose from, by name; reads the database.

    Nobody chooses who signed in for one tenant.
    """
    if visitor.tenant is not None:
        return {visitor.tenant: ""}
    return lowtide().administration.names(visitor)


async def in_thread(call: Callable[[], _Result]) -> _Result:
    """Return what a blocking call returns; raises what it raises."""
    # NiceGUI's pool, unlike asyncio's own, is not waited for when the portal stops.
    done = await run.io_bound(lambda: (call(),))
    if done is None:
        raise asyncio.CancelledError
    return done[0]

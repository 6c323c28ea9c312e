"""The portal's App and services, and blocking calls off the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar, cast

from nicegui import app, run

from portal.pulse import PULSE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowtide.app import App
    from lowtide.core.ids import TenantId
    from lowtide.services import Services
    from lowtide.tenants.sign_in import Principal
    from portal.cells import KnownCells

_Result = TypeVar("_Result")


def lowtide() -> App:
    """Return the App that the portal was built with."""
    return cast("App", app.state.lowtide)


def known_cells() -> KnownCells:
    """Return the cells that the portal knows."""
    return cast("KnownCells", app.state.cells)


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


MAX_CALLS: Final = 16
THREADS: Final = 48
"""Enough for all calls to the database to hang, and for sign-ins, uploads and probes beside them."""

_calls: Final = asyncio.Semaphore(MAX_CALLS)


async def in_thread(call: Callable[[], _Result]) -> _Result:
    """Run a blocking call that needs the database in a thread.

    Raises Unavailable at once during an outage of the database, and CancelledError if the portal
    stops. At most 16 calls run at a time; a call whose caller has left counts until it ends.
    """
    PULSE.check()
    await _calls.acquire()
    running = asyncio.ensure_future(run_blocking(call))
    running.add_done_callback(lambda _: _calls.release())
    return await asyncio.shield(running)


async def run_blocking(call: Callable[[], _Result]) -> _Result:
    """Run a blocking call in a thread; raises CancelledError if the portal stops."""
    # Shutdown does not wait for NiceGUI's thread pool, unlike asyncio's default executor.
    result = await run.io_bound(lambda: (call(),))
    if result is None:
        raise asyncio.CancelledError
    return result[0]


def add_threads() -> None:
    """Give the portal more threads than NiceGUI's default, which is 6 on 2 CPUs."""
    run.thread_pool = ThreadPoolExecutor(THREADS, "portal")

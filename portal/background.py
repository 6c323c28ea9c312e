"""Calls that block, beside the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from nicegui import run

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


async def in_thread(call: Callable[[], _Result]) -> _Result:
    """Return what a blocking call returns; raises what it raises."""
    # NiceGUI's pool, unlike asyncio's own, is not waited for when the portal stops.
    done = await run.io_bound(lambda: (call(),))
    if done is None:
        raise asyncio.CancelledError
    return done[0]

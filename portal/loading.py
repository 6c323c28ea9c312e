"""Pages that are sent before their data: the frame first, the content once it can be read."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from functools import wraps
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nicegui import ui
from nicegui.client import ClientConnectionTimeout

from lowtide.core.errors import LowtideError, Unavailable
from portal.pulse import PULSE
from portal.services import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_Result = TypeVar("_Result")


BUILD_SECONDS: Final = 20.0
_CONNECT_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 1.0
FIRST_WAIT: Final = 0.3
"""Seconds for data to become part of a browser's first response."""
_WHOLE_WAIT: Final = 10.0

_background: Final[set[asyncio.Future[None]]] = set()
_build_limit: ContextVar[asyncio.Timeout] = ContextVar("build_limit")


def limited(build: Callable[..., Any]) -> Callable[..., Any]:
    """Let a page be built for 20 s at most, without the time that `load` waits after its frame."""

    @wraps(build)
    async def built(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(BUILD_SECONDS) as limit:
            _build_limit.set(limit)
            result = build(*args, **kwargs)
            if isawaitable(result):
                await result

    return built


async def soon(*readings: Coroutine[Any, Any, None]) -> None:
    """Wait a moment for readings that the page can be built without; they go on after it."""
    tasks = {asyncio.ensure_future(reading) for reading in readings}
    for task in tasks:
        _background.add(task)
        task.add_done_callback(_background.discard)
    done, _ = await asyncio.wait(tasks, timeout=_patience())
    for task in done:
        task.result()


async def load(read: Callable[[], _Result]) -> _Result:
    """Run a reading in a thread, without which the page cannot be built further.

    If it takes long, the browser gets the page as built so far, with "Loading…" here. It is
    repeated while it raises Unavailable; other LowtideErrors are raised.
    """
    reading = asyncio.ensure_future(in_thread(read))
    try:
        await asyncio.wait({reading}, timeout=_patience())
        if reading.done() and not isinstance(reading.exception(), Unavailable):
            return reading.result()
        placeholder = ui.label("Loading…").classes("card muted").props("role=status")
        await _send_frame()
        while True:
            try:
                result = await reading
            except Unavailable as error:
                placeholder.text = error.message if PULSE.answering else "Loading…"
            except LowtideError:
                placeholder.delete()
                raise
            except Exception:
                placeholder.text = "This page could not be loaded."
                raise
            else:
                _stop_if_closed()
                placeholder.delete()
                return result
            # In an outage, the end of it is the time to try again.
            await (asyncio.sleep(_RETRY_SECONDS) if PULSE.answering else PULSE.answers())
            _stop_if_closed()
            reading = asyncio.ensure_future(in_thread(read))
    finally:
        reading.cancel()


async def _send_frame() -> None:
    """Let the browser have the page as built so far, and wait until it is connected."""
    limit = _build_limit.get(None)
    if limit is not None:
        limit.reschedule(None)
    try:
        await ui.context.client.connected(_CONNECT_SECONDS)
    except ClientConnectionTimeout:
        raise asyncio.CancelledError from None
    _stop_if_closed()


def _stop_if_closed() -> None:
    if ui.context.client.is_deleted:
        raise asyncio.CancelledError


def _patience() -> float:
    """Return the seconds to wait for data before the first response.

    A client that is no browser gets everything in the first response: it opens no websocket.
    """
    request = ui.context.client.request
    return FIRST_WAIT if request is not None and is_browser(request.headers) else _WHOLE_WAIT


def is_browser(headers: Any) -> bool:
    """Return True for a request of a browser for a page."""
    return "text/html" in headers.get("accept", "")

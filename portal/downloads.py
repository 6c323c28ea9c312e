"""Files for a browser, streamed: a few at a time, as each holds a piece in memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from lowtide.domain.errors import LowtideError
from lowtide.settings import read_settings
from portal.background import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Message, Receive, Scope, Send

    from lowtide.domain.visitors import Visitor

MOST: Final = 8
"""Most downloads at a time; docs/operations.md has what they take."""
MOST_OF_ONE: Final = 4
_SENT_BYTES: Final = 1 << 18
"""How much a browser must take within LOWTIDE_CLIENT_TIMEOUT."""

_running: list[Visitor] = []


class Download(Response):
    """What `pieces` yields, as a file to save; what it raises before its first piece is told."""

    def __init__(
        self, visitor: Visitor, pieces: Callable[[], Iterator[bytes]], filename: str
    ) -> None:
        super().__init__()
        self._visitor = visitor
        self._pieces = pieces
        self._filename = filename

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (the interface of ASGI)."""
        if len(_running) >= MOST or _running.count(self._visitor) >= MOST_OF_ONE:
            busy = "Other downloads are under way: try again when one of them is over."
            await PlainTextResponse(busy, status_code=503)(scope, receive, send)
            return
        _running.append(self._visitor)
        try:
            answer = await self._answer()
            # A browser that does not take it is hung up on.
            with suppress(TimeoutError, ClientDisconnect):
                await answer(scope, receive, _in_time(send))
        finally:
            _running.remove(self._visitor)

    async def _answer(self) -> Response:
        try:
            content = await in_thread(self._open)
        except LowtideError as error:
            return PlainTextResponse(error.message, status_code=error.status)
        headers = {"Content-Disposition": f'attachment; filename="{self._filename}"'}
        return StreamingResponse(content, media_type="application/jsonl", headers=headers)

    def _open(self) -> Iterator[bytes]:
        pieces = self._pieces()
        # What cannot be read fails here, while there is a status to answer with.
        return _split(chain([next(pieces, b"")], pieces))


def _split(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), _SENT_BYTES):
            yield piece[start : start + _SENT_BYTES]


def _in_time(send: Send) -> Send:
    """Return `send` that raises TimeoutError when the browser does not take what it is sent."""

    async def sent(message: Message) -> None:
        async with asyncio.timeout(read_settings().client_timeout):
            await send(message)

    return sent

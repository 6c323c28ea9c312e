"""Files for a browser, streamed: a few at a time, as each holds a piece in memory."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from starlette.responses import PlainTextResponse, Response, StreamingResponse

from lowtide.domain.errors import LowtideError
from portal.background import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Receive, Scope, Send

MOST: Final = 8
"""Most downloads at a time; docs/operations.md has what they take."""

_running: set[Download] = set()


class Download(Response):
    """What `pieces` yields, as a file to save; what it raises before its first piece is told."""

    def __init__(self, pieces: Callable[[], Iterator[bytes]], filename: str) -> None:
        super().__init__()
        self._pieces = pieces
        self._filename = filename

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (the interface of ASGI)."""
        if len(_running) >= MOST:
            busy = f"{MOST} downloads are under way: try again when one is over."
            await PlainTextResponse(busy, status_code=503)(scope, receive, send)
            return
        _running.add(self)
        try:
            answer = await self._answer()
            await answer(scope, receive, send)
        finally:
            _running.remove(self)

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
        return chain([next(pieces, b"")], pieces)

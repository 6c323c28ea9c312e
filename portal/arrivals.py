"""Files on their way in, each to the page that its browser shows."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from nicegui import app, ui
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

from portal.sessions import visitor_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from lowtide.domain.visitors import Visitor

    Take = Callable[[Visitor, str, AsyncIterator[bytes]], Awaitable[None]]

PATH: Final = "/upload/file"
PAGE_HEADER: Final = "X-Page"
NAME_HEADER: Final = "X-File-Name"


class Arrivals:
    """Passes the bytes of a request to an open page as they come: nothing is kept on this machine."""

    def __init__(self) -> None:
        self._takers: dict[str, Take] = {}

    def install(self) -> None:
        """Serve the way in."""
        app.add_route(PATH, self._arrive, methods=["POST"])

    def expect(self, take: Take) -> str:
        """Return the word that leads files to the page that is being built, until it is closed."""
        word = secrets.token_urlsafe(16)
        self._takers[word] = take
        ui.context.client.on_delete(lambda: self._takers.pop(word, None))
        return word

    async def _arrive(self, request: Request) -> Response:
        """Take a file: its bytes are the body, its name a header."""
        visitor = visitor_of(request.session)
        take = self._takers.get(request.headers.get(PAGE_HEADER, ""))
        if visitor is None or take is None:
            return PlainTextResponse("Load the page again.", status_code=404)
        name = unquote(request.headers.get(NAME_HEADER, "file"))
        try:
            await take(visitor, name, request.stream())
        except ClientDisconnect:
            return PlainTextResponse("The browser went away.", status_code=400)
        return PlainTextResponse("taken")

"""Streamed downloads, limited in number because each keeps a piece in memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Final

from fastapi import Request  # noqa: TC002 - read at run time, to know what the route takes
from nicegui import app
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from lowtide.core.errors import InvalidRequest, LowtideError, Unauthenticated
from lowtide.core.ids import parse_batch_id
from lowtide.dead_letters.service import Content
from portal.queries import LetterQuery
from portal.services import in_thread, lowtide, services_for, tenants_for
from portal.sessions import principal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Message, Receive, Scope, Send

    from lowtide.core.ids import BatchId
    from lowtide.tenants.sign_in import Principal


MOST: Final = 8
"""Max concurrent downloads; docs/operations.md has the memory they need."""
MAX_OF_ONE: Final = 4
_SENT_BYTES: Final = 1 << 18
"""Max bytes of a chunk; a browser must accept each within LOWTIDE_CLIENT_TIMEOUT."""

_running: list[Principal] = []


class Download(Response):
    """A file streamed from `pieces`; a LowtideError before the first piece sets the response."""

    def __init__(
        self, principal: Principal, pieces: Callable[[], Iterator[bytes]], filename: str
    ) -> None:
        super().__init__()
        self._principal = principal
        self._pieces = pieces
        self._filename = filename

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file (ASGI), or 503 over the max number of downloads."""
        if len(_running) >= MOST or _running.count(self._principal) >= MAX_OF_ONE:
            busy = "Too many downloads are running: try again when one has finished."
            await PlainTextResponse(busy, status_code=503)(scope, receive, send)
            return
        _running.append(self._principal)
        try:
            response = await self._respond()
            # A browser that stops reading is disconnected.
            with suppress(TimeoutError, ClientDisconnect):
                await response(scope, receive, _with_timeout(send))
        finally:
            _running.remove(self._principal)

    async def _respond(self) -> Response:
        try:
            content = await in_thread(self._open)
        except LowtideError as error:
            return PlainTextResponse(error.message, status_code=error.status)
        headers = {"Content-Disposition": f'attachment; filename="{self._filename}"'}
        return StreamingResponse(content, media_type="application/jsonl", headers=headers)

    def _open(self) -> Iterator[bytes]:
        pieces = self._pieces()
        # Read errors surface here, while the status can still be set.
        return _split(chain([next(pieces, b"")], pieces))


def _split(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), _SENT_BYTES):
            yield piece[start : start + _SENT_BYTES]


def _with_timeout(send: Send) -> Send:
    """Return a `send` that raises TimeoutError when the browser stops reading."""

    async def send_in_time(message: Message) -> None:
        async with asyncio.timeout(lowtide().settings.client_timeout):
            await send(message)

    return send_in_time


FAILED_INPUTS: Final = "failed_inputs"
ROLES: Final = ("input", "output", "error", FAILED_INPUTS)


def install_batch_files() -> None:
    """Serve the input, output and error files of batches, and the inputs of failed requests."""
    app.add_api_route(
        "/batches/{batch_id}/files/{role}", _batch_file, methods=["GET"], include_in_schema=False
    )


async def _batch_file(request: Request, batch_id: str, role: str) -> Response:
    principal = principal_of(request.session)
    batch = parse_batch_id(batch_id)
    if principal is None or batch is None or role not in ROLES:
        return PlainTextResponse("File not found.", status_code=404)
    # The file name of the upload is untrusted, so the batch id names the download.
    return Download(
        principal, lambda: _file_pieces(principal, batch, role), f"{batch_id}_{role}.jsonl"
    )


def _file_pieces(principal: Principal, batch: BatchId, role: str) -> Iterator[bytes]:
    services = services_for(principal)
    if role == FAILED_INPUTS:
        tenant = services.browser.details(principal, batch).batch.tenant
        return services.reruns.inputs(tenant, batch, actor=principal.name)
    _, pieces = services.browser.download(principal, batch, role)
    return pieces


PATH: Final = "/dead-letters/content"


def install_dead_letters() -> None:
    """Serve downloads of dead letters."""
    app.add_route(PATH, _dead_letters, methods=["GET"])


async def _dead_letters(request: Request) -> Response:
    """Stream the dead letters that match a filter; `which` is `input` or `output`."""
    kind = request.query_params.get("which", "")
    if kind not in set(Content):
        message = f"which must be one of {', '.join(Content)}."
        return PlainTextResponse(message, status_code=InvalidRequest.status)
    principal = principal_of(request.session)
    if principal is None:
        return PlainTextResponse("Sign in first.", status_code=Unauthenticated.status)
    content = Content(kind)
    return Download(
        principal,
        lambda: _letter_pieces(request, principal, content),
        f"dead_letters_{content}.jsonl",
    )


def _letter_pieces(request: Request, principal: Principal, content: Content) -> Iterator[bytes]:
    query = LetterQuery.read(request.query_params)
    tenant = query.chosen_tenant(tenants_for(principal))
    if tenant is None:
        raise InvalidRequest("Name a tenant: a download has the dead letters of one.")
    return services_for(principal).dead_letters.download(
        tenant, query.filter(), content, actor=principal.name
    )

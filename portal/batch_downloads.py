"""A batch's files, streamed to who may see the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi import Request  # noqa: TC002 - read at run time, to know what the route takes
from fastapi.responses import PlainTextResponse
from nicegui import app

from lowtide import wiring
from lowtide.domain.ids import parse_batch_id
from portal.downloads import Download
from portal.sessions import visitor_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import Response

    from lowtide.domain.ids import BatchId
    from lowtide.domain.visitors import Visitor

ROLES: Final = ("input", "output", "error")


def install() -> None:
    """Serve input, output and error files."""
    app.add_api_route(
        "/batches/{batch_id}/files/{role}", _download, methods=["GET"], include_in_schema=False
    )


async def _download(request: Request, batch_id: str, role: str) -> Response:
    visitor = visitor_of(request.session)
    batch = parse_batch_id(batch_id)
    if visitor is None or batch is None or role not in ROLES:
        return PlainTextResponse("There is no such file.", status_code=404)
    # Not under the name it was uploaded with, which is anybody's.
    return Download(visitor, lambda: _pieces(visitor, batch, role), f"{batch_id}_{role}.jsonl")


def _pieces(visitor: Visitor, batch: BatchId, role: str) -> Iterator[bytes]:
    _, pieces = wiring.desks_for(visitor).browser.download(visitor, batch, role)
    return pieces

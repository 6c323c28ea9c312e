"""Dead letters as JSONL, streamed."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from nicegui import app
from starlette.responses import PlainTextResponse, StreamingResponse

from lowtide.domain.errors import InvalidRequest, LowtideError, Unauthenticated
from lowtide.services.dead_letters import Content
from portal.acting import desk_for, tenants_for
from portal.background import in_thread
from portal.letter_query import LetterQuery
from portal.sessions import visitor_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response

PATH: Final = "/dead-letters/content"


def install() -> None:
    """Serve downloads."""
    app.add_route(PATH, _download, methods=["GET"])


async def _download(request: Request) -> Response:
    """Stream the letters of a filter; `which` is `input` or `output`."""
    try:
        which = _content(request.query_params.get("which", ""))
        body = await in_thread(lambda: _open(request, which))
    except LowtideError as error:
        return PlainTextResponse(error.message, status_code=error.status)
    headers = {"Content-Disposition": f'attachment; filename="dead_letters_{which}.jsonl"'}
    return StreamingResponse(body, media_type="application/x-ndjson", headers=headers)


def _open(request: Request, which: Content) -> Iterator[bytes]:
    visitor = visitor_of(request.session)
    if visitor is None:
        raise Unauthenticated("Sign in first.")
    query = LetterQuery.read(request.query_params)
    tenant = query.chosen_tenant(tenants_for(visitor))
    pieces = desk_for(visitor).letters.download(tenant, query.filter(), which, actor=visitor.name)
    # Read before the answer begins: an input that is gone can still be told from then on.
    return chain([next(pieces, b"")], pieces)


def _content(text: str) -> Content:
    if text not in set(Content):
        raise InvalidRequest(f"which must be one of {', '.join(Content)}.", param="which")
    return Content(text)

"""Dead letters as JSONL, streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nicegui import app
from starlette.responses import PlainTextResponse

from lowtide.domain.errors import InvalidRequest, Unauthenticated
from lowtide.services.dead_letters import Content
from portal.acting import desk_for, tenants_for
from portal.downloads import Download
from portal.letter_query import LetterQuery
from portal.sessions import visitor_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from lowtide.domain.visitors import Visitor

PATH: Final = "/dead-letters/content"


def install() -> None:
    """Serve downloads."""
    app.add_route(PATH, _download, methods=["GET"])


async def _download(request: Request) -> Response:
    """Stream the letters of a filter; `which` is `input` or `output`."""
    which = request.query_params.get("which", "")
    if which not in set(Content):
        message = f"which must be one of {', '.join(Content)}."
        return PlainTextResponse(message, status_code=InvalidRequest.status)
    visitor = visitor_of(request.session)
    if visitor is None:
        return PlainTextResponse("Sign in first.", status_code=Unauthenticated.status)
    content = Content(which)
    return Download(
        visitor, lambda: _pieces(request, visitor, content), f"dead_letters_{content}.jsonl"
    )


def _pieces(request: Request, visitor: Visitor, content: Content) -> Iterator[bytes]:
    query = LetterQuery.read(request.query_params)
    tenant = query.chosen_tenant(tenants_for(visitor))
    return desk_for(visitor).letters.download(tenant, query.filter(), content, actor=visitor.name)

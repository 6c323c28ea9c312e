"""`/v1/search`, an extension to OpenAI's API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.core.ids import format_batch_id
from lowtide.http import types
from lowtide.http.application import json_response
from lowtide.http.operations import argument, limit_argument
from lowtide.search.model import MAX_MATCHES, Kind

if TYPE_CHECKING:
    from flask import Response

    from lowtide.http.application import Call
    from lowtide.search.model import Match, SearchResult


def search(call: Call) -> Response:
    """`GET /v1/search`."""
    limit = limit_argument(call.request, max_limit=MAX_MATCHES, default=MAX_MATCHES)
    text = argument(call.request, "q") or ""
    return json_response(search_page(call.services.search.find(call.tenant, text, limit=limit)))


def search_page(result: SearchResult) -> types.SearchPage:
    """Return the list of matches."""
    return types.SearchPage(
        data=[_match_object(match) for match in result.matches],
        more=[kind.value for kind in Kind if kind in result.more],
    )


def _match_object(match: Match) -> types.SearchMatch:
    batch = match.batch
    return types.SearchMatch(
        kind=match.kind.value,
        id=match.id,
        field=match.field,
        value=match.value,
        exact=match.is_exact,
        batch=None
        if batch is None
        else types.SearchedBatch(
            format_batch_id(batch.id),
            batch.user,
            batch.status.value,
            types.unix(batch.created_at),
        ),
        filename=match.name if match.kind is Kind.FILE else None,
        custom_id=(match.name or None) if match.kind is Kind.REQUEST else None,
        line=match.line,
    )

"""`/v1/batches/{batch_id}/requests` and `/results`: beyond OpenAI."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from flask import Response

from lowtide import wiring
from lowtide.domain.errors import InvalidRequest
from lowtide.domain.outputs import render_all
from lowtide.domain.pools import Pool
from lowtide.domain.requests import ResultCursor, parse_cursor
from lowtide.domain.statuses import RequestStatus
from lowtide.http.application import json_response
from lowtide.http.batches import batch_named
from lowtide.http.objects import request_page
from lowtide.http.paging import argument, limit_argument

if TYPE_CHECKING:
    from enum import StrEnum

    from lowtide.http.application import Call

_Choice = TypeVar("_Choice", bound="StrEnum")


def page(call: Call, batch_id: str) -> Response:
    """`GET /v1/batches/{batch_id}/requests`."""
    batch = batch_named(batch_id)
    found, more = wiring.requests().page(
        call.tenant,
        batch,
        after=_after(call),
        limit=limit_argument(call.request, most=1000, default=100),
        status=_choice(call, "status", RequestStatus),
        pool=_choice(call, "pool", Pool),
    )
    return json_response(request_page(batch, found, has_more=more))


def results(call: Call, batch_id: str) -> Response:
    """`GET /v1/batches/{batch_id}/results`: NDJSON of what is finished behind the cursor."""
    batch = batch_named(batch_id)
    text = argument(call.request, "after") or str(ResultCursor())
    cursor = parse_cursor(text)
    if cursor is None:
        raise InvalidRequest(
            "after is not a cursor: use the x-lowtide-cursor header of the answer before.",
            param="after",
        )
    limit = limit_argument(call.request, most=10_000, default=1000)
    found = wiring.requests().results(call.tenant, batch, cursor, limit, actor=call.caller.actor)
    headers = {
        "x-lowtide-cursor": str(found.cursor),
        "x-lowtide-complete": "true" if found.complete else "false",
    }
    service = wiring.requests()
    blocks = render_all(batch, found.lines, lambda line: service.body(call.tenant, batch, line))
    body = blocks if any(line.is_long for line in found.lines) else b"".join(blocks)
    return Response(body, headers=headers, mimetype="application/x-ndjson")


def _after(call: Call) -> int:
    """Return the line that `after` names, by number or by request id."""
    text = argument(call.request, "after") or "0"
    digits = str(int(text[-8:], 16)) if _is_request_id(text) else text
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        raise InvalidRequest("after must be a request's id or its line.", param="after")
    return int(digits)


def _is_request_id(text: str) -> bool:
    digits = text.removeprefix("batch_req_")
    return len(digits) == 40 and len(text) == 50 and set(digits) <= set("0123456789abcdef")


def _choice(call: Call, name: str, choices: type[_Choice]) -> _Choice | None:
    text = argument(call.request, name)
    if text is None:
        return None
    try:
        return choices(text)
    except ValueError:
        raise InvalidRequest(f"{name} must be one of {', '.join(choices)}.", param=name) from None

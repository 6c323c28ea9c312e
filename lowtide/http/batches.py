"""`/v1/batches`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from lowtide import wiring
from lowtide.domain.errors import (
    InvalidRequest,
    NotFound,
)
from lowtide.domain.ids import BatchId, parse_batch_id
from lowtide.http.application import json_response
from lowtide.http.bodies import digest_of, idempotency_key, json_body
from lowtide.http.objects import batch_object, batch_page
from lowtide.http.paging import page_arguments
from lowtide.http.types import CreateBatch
from lowtide.services.batches import BatchRequest

if TYPE_CHECKING:
    from flask import Request, Response

    from lowtide.http.application import Call

_MAX_BODY_BYTES = 1 << 20

_decode = msgspec.json.Decoder(CreateBatch).decode


def create(call: Call) -> Response:
    """`POST /v1/batches`."""
    wanted = _body(call.request)
    input_file_id = wanted.input_file_id or wanted.original_input_file_id
    if not input_file_id:
        raise InvalidRequest(
            "input_file_id is missing: upload a file first and name it here.",
            param="input_file_id",
        )
    user = wanted.user_id or (wanted.metadata or {}).get("user") or call.caller.name
    expiry = wanted.output_expires_after
    request = BatchRequest(
        input_file_id=input_file_id,
        user=_printable(user),
        endpoint=wanted.endpoint,
        completion_window=wanted.completion_window,
        metadata=wanted.metadata,
        output_expires_after=None if expiry is None else expiry.seconds,
        idempotency_key=idempotency_key(call.request),
        idempotency_digest=digest_of(
            replace(wanted, input_file_id=input_file_id, original_input_file_id=None)
        ),
        actor=call.caller.actor,
        joins_trace=call.joins_trace,
    )
    return json_response(batch_object(wiring.batches().create(call.tenant, request)))


def get(call: Call, batch_id: str) -> Response:
    """`GET /v1/batches/{batch_id}`."""
    return json_response(batch_object(wiring.batches().get(call.tenant, batch_named(batch_id))))


def page(call: Call) -> Response:
    """`GET /v1/batches`."""
    arguments = page_arguments(call.request, most=100, default=20)
    after = None if arguments.after is None else batch_named(arguments.after, "after")
    batches, more = wiring.batches().page(call.tenant, after=after, limit=arguments.limit)
    return json_response(batch_page(batches, has_more=more))


def cancel(call: Call, batch_id: str) -> Response:
    """`POST /v1/batches/{batch_id}/cancel`."""
    cancelled = wiring.batches().cancel(call.tenant, batch_named(batch_id), call.caller.actor)
    return json_response(batch_object(cancelled))


def batch_named(text: str, param: str = "batch_id") -> BatchId:
    """Return the id behind its public form; raises NotFound."""
    batch = parse_batch_id(text)
    if batch is None:
        raise NotFound(f"No batch {text[:100]!r}: check the id.", param=param)
    return batch


def _body(request: Request) -> CreateBatch:
    wanted = json_body(request, _decode, most=_MAX_BODY_BYTES)
    for key, value in (wanted.metadata or {}).items():
        if "\x00" in key + value:
            raise InvalidRequest("metadata must not contain U+0000.", param="metadata")
    return wanted


def _printable(user: str) -> str:
    return user.replace("\x00", "")[:256]

"""`/v1/batches`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from lowtide import wiring
from lowtide.domain.errors import InvalidRequest, NotFound, UnsupportedMediaType
from lowtide.domain.ids import BatchId, parse_batch_id
from lowtide.http.application import json_response
from lowtide.http.objects import batch_object, page_object
from lowtide.http.paging import page_arguments
from lowtide.services.batches import BatchRequest

if TYPE_CHECKING:
    from flask import Request, Response

    from lowtide.http.application import Call

_MAX_BODY_BYTES = 1 << 20

_MetadataKey = Annotated[str, msgspec.Meta(max_length=64)]
_MetadataValue = Annotated[str, msgspec.Meta(max_length=512)]


class _Create(msgspec.Struct):
    """OpenAI's body, and the original's `{"inputFileId", "userId"}`."""

    input_file_id: str | None = None
    endpoint: str | None = None
    completion_window: str | None = None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], msgspec.Meta(max_length=16)] | None = (
        None
    )
    input_file_id_original: str | None = msgspec.field(name="inputFileId", default=None)
    user_id: str | None = msgspec.field(name="userId", default=None)


_decode = msgspec.json.Decoder(_Create).decode


def create(call: Call) -> Response:
    """`POST /v1/batches`."""
    wanted = _body(call.request)
    input_file_id = wanted.input_file_id or wanted.input_file_id_original
    if not input_file_id:
        raise InvalidRequest(
            "input_file_id is missing: upload a file first and name it here.",
            param="input_file_id",
        )
    request = BatchRequest(
        input_file_id=input_file_id,
        user=_printable(wanted.user_id or (wanted.metadata or {}).get("user") or call.caller.name),
        endpoint=wanted.endpoint,
        completion_window=wanted.completion_window,
        metadata=wanted.metadata,
        idempotency_key=call.request.headers.get("Idempotency-Key"),
    )
    return json_response(batch_object(wiring.batches().create(call.tenant, request)))


def get(call: Call, batch_id: str) -> Response:
    """`GET /v1/batches/{batch_id}`."""
    return json_response(batch_object(wiring.batches().get(call.tenant, _id(batch_id))))


def page(call: Call) -> Response:
    """`GET /v1/batches`."""
    arguments = page_arguments(call.request, most=100, default=20)
    after = None if arguments.after is None else _id(arguments.after, "after")
    batches, more = wiring.batches().page(call.tenant, after=after, limit=arguments.limit)
    return json_response(page_object([batch_object(batch) for batch in batches], has_more=more))


def cancel(call: Call, batch_id: str) -> Response:
    """`POST /v1/batches/{batch_id}/cancel`."""
    return json_response(batch_object(wiring.batches().cancel(call.tenant, _id(batch_id))))


def _id(text: str, param: str = "batch_id") -> BatchId:
    batch = parse_batch_id(text)
    if batch is None:
        raise NotFound(f"No batch {text!r}: check the id.", param=param)
    return batch


def _body(request: Request) -> _Create:
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send JSON, with Content-Type: application/json.")
    body = request.stream.read(_MAX_BODY_BYTES)
    try:
        wanted = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not what this call takes: {error}.") from error
    for key, value in (wanted.metadata or {}).items():
        if "\x00" in key + value:
            raise InvalidRequest("metadata must not contain U+0000.", param="metadata")
    return wanted


def _printable(user: str) -> str:
    return user.replace("\x00", "")[:256]

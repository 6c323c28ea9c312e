"""`/v1/batches`, with the requests and results of a batch."""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import msgspec
from flask import Response
from msgspec.structs import replace

from lowtide.batches.model import BatchStatus, RequestStatus
from lowtide.batches.results import ResultCursor, parse_cursor
from lowtide.batches.service import BatchRequest
from lowtide.core.errors import InvalidRequest, NotFound
from lowtide.core.ids import (
    BatchId,
    format_batch_id,
    format_file_id,
    format_request_id,
    parse_batch_id,
)
from lowtide.core.pools import Pool
from lowtide.http import types
from lowtide.http.application import json_response
from lowtide.http.bodies import digest_of, idempotency_key, json_body
from lowtide.http.operations import argument, limit_argument, page_arguments
from lowtide.http.types import CreateBatch, unix, unix_or_none
from lowtide.planning.reasons import describe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from enum import StrEnum

    from flask import Request

    from lowtide.batches.model import Batch, Export
    from lowtide.batches.results import RequestState
    from lowtide.core.ids import FileId
    from lowtide.core.pools import Cost
    from lowtide.http.application import Call
    from lowtide.planning.reasons import Risk


# A billionth of a replica hour is four microseconds.
_DIGITS = 9


def batch_object(batch: Batch) -> types.Batch:
    """Return the Batch object."""
    errors = [
        types.BatchError(problem.code, problem.message, problem.param, problem.line)
        for problem in batch.errors
    ]
    return types.Batch(
        id=format_batch_id(batch.id),
        endpoint=batch.endpoint,
        model=batch.model,
        errors=types.BatchErrors(errors) if errors else None,
        input_file_id=format_file_id(batch.input_file),
        completion_window=batch.completion_window,
        status=batch.status.value,
        output_file_id=_file_id(batch.output_file),
        error_file_id=_file_id(batch.error_file),
        created_at=unix(batch.created_at),
        in_progress_at=unix_or_none(batch.in_progress_at),
        expires_at=unix(batch.deadline),
        finalizing_at=unix_or_none(batch.finalizing_at),
        completed_at=unix_or_none(batch.completed_at),
        failed_at=unix_or_none(batch.failed_at),
        expired_at=unix_or_none(batch.expired_at),
        cancelling_at=unix_or_none(batch.cancelling_at),
        cancelled_at=unix_or_none(batch.cancelled_at),
        request_counts=types.RequestCounts(batch.total, batch.completed, batch.failed),
        usage=types.Usage(
            input_tokens=batch.input_tokens,
            output_tokens=batch.output_tokens,
            total_tokens=batch.input_tokens + batch.output_tokens,
            input_tokens_details=types.InputTokensDetails(batch.cached_tokens),
            output_tokens_details=types.OutputTokensDetails(batch.reasoning_tokens),
        ),
        metadata=None if batch.metadata is None else dict(batch.metadata),
        x_lowtide=_extension(batch),
    )


def batch_page(batches: Sequence[Batch], *, has_more: bool) -> types.BatchPage:
    """Return one page of batches."""
    data = [batch_object(batch) for batch in batches]
    return types.BatchPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more,
    )


def request_object(batch: BatchId, request: RequestState) -> types.Request:
    """Return the Request object."""
    return types.Request(
        id=format_request_id(batch, request.line),
        line=request.line,
        custom_id=request.custom_id or None,
        status=request.status.value,
        dead_lettered=request.dead_lettered,
        pool=None if request.pool is None else request.pool.value,
        attempts=request.attempts,
        interruptions=request.interruptions,
        escalated=request.escalated,
        queued_at=unix_or_none(request.queued_at),
        started_at=unix_or_none(request.started_at),
        finished_at=unix_or_none(request.finished_at),
        status_code=request.status_code,
        error_code=request.error_code,
        error_message=request.error_message,
    )


def request_page(
    batch: BatchId, requests: Sequence[RequestState], *, has_more: bool
) -> types.RequestPage:
    """Return one page of a batch's requests."""
    data = [request_object(batch, request) for request in requests]
    return types.RequestPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more,
    )


def _extension(batch: Batch) -> types.Extension:
    finished = batch.outcomes.completed + batch.outcomes.failed
    on_dedicated = min(batch.finished_on_dedicated, finished)
    return types.Extension(
        user=batch.user,
        priority=batch.priority,
        outcomes=types.Outcomes(**asdict(batch.outcomes)),
        sla_state=batch.sla_state.value,
        risk=None if batch.risk is None else _risk(batch.risk),
        deadline=unix(batch.deadline),
        eta=unix_or_none(batch.eta),
        data_ends_at=unix_or_none(batch.data_ends_at),
        pools={"spot": finished - on_dedicated, "dedicated": on_dedicated},
        interruptions=batch.interruptions,
        retries=batch.retries,
        escalations=batch.escalations,
        cost=cost_object(batch.cost),
        trace_id=None if batch.trace is None else batch.trace.trace_id,
        input_url=batch.input_url,
        export=None if batch.export is None else _export(batch.export),
        zero_retention=batch.zero_retention,
    )


def _export(export: Export) -> types.Export:
    return types.Export(url=export.url, state=export.state.value, error=export.error)


def _risk(risk: Risk) -> types.Risk:
    return types.Risk(
        reason=risk.reason,
        text=describe(risk.reason, risk.bound),
        since=unix(risk.since),
        bound=None if risk.bound is None else types.Bound(**asdict(risk.bound)),
    )


def cost_object(cost: Cost) -> types.Cost:
    """Return a cost, rounded."""
    return types.Cost(
        currency=cost.currency,
        spot=round(cost.spot, _DIGITS),
        dedicated=round(cost.dedicated, _DIGITS),
        total=round(cost.total, _DIGITS),
        all_dedicated=round(cost.all_dedicated, _DIGITS),
    )


def _file_id(file: FileId | None) -> str | None:
    return None if file is None else format_file_id(file)


_MAX_BODY_BYTES = 1 << 20

_decode = msgspec.json.Decoder(CreateBatch).decode


def create_batch(call: Call) -> Response:
    """`POST /v1/batches`."""
    body = _body(call.request)
    input_file_id = _input_file_id(body)
    user = body.user_id or (body.metadata or {}).get("user") or call.caller.name
    expiry = body.output_expires_after
    request = BatchRequest(
        input_file_id=input_file_id,
        input_url=body.input_url,
        output_url=body.output_url,
        user=_printable(user),
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        metadata=body.metadata,
        output_expires_after=None if expiry is None else expiry.seconds,
        idempotency_key=idempotency_key(call.request),
        idempotency_digest=digest_of(
            replace(body, input_file_id=input_file_id, original_input_file_id=None)
        ),
        actor=call.caller.actor,
        joins_trace=call.joins_trace,
        zero_retention=bool(body.zero_retention),
        priority=_priority(body),
    )
    batch = call.services.batches.create(call.tenant, request)
    return json_response(batch_object(batch))


def _priority(body: CreateBatch) -> int:
    return 0 if body.x_lowtide is None else int(body.x_lowtide.priority or 0)


def _input_file_id(body: CreateBatch) -> str | None:
    """Return the id of the input file; None if the body has an input_url instead."""
    input_file_id = body.input_file_id or body.original_input_file_id
    if input_file_id and body.input_url is not None:
        raise InvalidRequest(
            "input_file_id and input_url are both given: give one.", param="input_url"
        )
    if not input_file_id and body.input_url is None:
        raise InvalidRequest(
            "input_file_id is missing: upload a file first and pass its id, or pass the input_url "
            "of an object in a registered bucket.",
            param="input_file_id",
        )
    return input_file_id or None


def get_batch(call: Call, batch_id: str) -> Response:
    """`GET /v1/batches/{batch_id}`."""
    batch = call.services.batches.get(call.tenant, require_batch_id(batch_id))
    return json_response(batch_object(batch))


def list_batches(call: Call) -> Response:
    """`GET /v1/batches`."""
    arguments = page_arguments(call.request, max_limit=100, default=20)
    after = None if arguments.after is None else require_batch_id(arguments.after, "after")
    batches, has_more = call.services.batches.page(
        call.tenant,
        after=after,
        limit=arguments.limit,
        status=_choice(call, "status", BatchStatus),
        user=_user(call.request),
    )
    return json_response(batch_page(batches, has_more=has_more))


def _user(request: Request) -> str | None:
    user = argument(request, "user")
    return None if user is None else _printable(user)


def cancel_batch(call: Call, batch_id: str) -> Response:
    """`POST /v1/batches/{batch_id}/cancel`."""
    cancelled = call.services.batches.cancel(
        call.tenant, require_batch_id(batch_id), call.caller.actor
    )
    return json_response(batch_object(cancelled))


def require_batch_id(text: str, param: str = "batch_id") -> BatchId:
    """Parse the id of a batch; raises NotFound."""
    batch = parse_batch_id(text)
    if batch is None:
        raise NotFound(f"Batch {text[:100]!r} not found: check the id.", param=param)
    return batch


def _body(request: Request) -> CreateBatch:
    body = json_body(request, _decode, max_bytes=_MAX_BODY_BYTES)
    for key, value in (body.metadata or {}).items():
        if "\x00" in key + value:
            raise InvalidRequest("metadata must not contain U+0000.", param="metadata")
    return body


def _printable(user: str) -> str:
    return user.replace("\x00", "")[:256]


_Choice = TypeVar("_Choice", bound="StrEnum")


def list_requests(call: Call, batch_id: str) -> Response:
    """`GET /v1/batches/{batch_id}/requests`."""
    batch = require_batch_id(batch_id)
    requests, has_more = call.services.requests.page(
        call.tenant,
        batch,
        after=_after(call),
        limit=limit_argument(call.request, max_limit=1000, default=100),
        status=_choice(call, "status", RequestStatus),
        dead_lettered=_flag(call, "dead_lettered"),
        pool=_choice(call, "pool", Pool),
    )
    return json_response(request_page(batch, requests, has_more=has_more))


def list_results(call: Call, batch_id: str) -> Response:
    """`GET /v1/batches/{batch_id}/results`: NDJSON of the results after the cursor."""
    batch = require_batch_id(batch_id)
    text = argument(call.request, "after") or str(ResultCursor())
    cursor = parse_cursor(text)
    if cursor is None:
        raise InvalidRequest(
            "after is not a cursor: use the x-lowtide-cursor header of the previous response.",
            param="after",
        )
    limit = limit_argument(call.request, max_limit=10_000, default=1000)
    page = call.services.requests.results(
        call.tenant, batch, cursor, limit, actor=call.caller.actor
    )
    headers = {
        "x-lowtide-cursor": str(page.cursor),
        "x-lowtide-complete": "true" if page.complete else "false",
    }
    # Reads the first block before the response starts: a failure becomes an error.
    blocks = chain([next(page.blocks, b"")], page.blocks)
    body = blocks if page.has_long else b"".join(blocks)
    return Response(body, headers=headers, mimetype="application/x-ndjson")


def _after(call: Call) -> int:
    """Return the line that `after` gives as a number or a request id."""
    text = argument(call.request, "after") or "0"
    digits = str(int(text[-8:], 16)) if _is_request_id(text) else text
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        raise InvalidRequest("after must be a request id or a line number.", param="after")
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


_FLAGS = {"true": True, "false": False}


def _flag(call: Call, name: str) -> bool | None:
    text = argument(call.request, name)
    if text is not None and text not in _FLAGS:
        raise InvalidRequest(f"{name} must be true or false.", param=name)
    return None if text is None else _FLAGS[text]

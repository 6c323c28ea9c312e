"""`/v1/dead_letters`, an extension to OpenAI's API."""

from __future__ import annotations

import uuid
from itertools import chain
from typing import TYPE_CHECKING

import msgspec
from flask import Response
from msgspec.structs import replace

from lowtide.core.errors import InvalidRequest, NotFound
from lowtide.core.ids import format_batch_id, format_request_id, parse_batch_id, parse_request_id
from lowtide.core.pools import Pool
from lowtide.core.scopes import Scope
from lowtide.dead_letters import api_types as types
from lowtide.dead_letters.model import (
    MAX_LETTERS,
    MAX_SOURCES,
    MESSAGE_LENGTH,
    LetterFilter,
    LetterId,
    LetterState,
)
from lowtide.dead_letters.requeue import RequeueRequest
from lowtide.dead_letters.service import Content
from lowtide.http.application import json_response
from lowtide.http.bodies import digest_of, idempotency_key, json_body
from lowtide.http.operations import Operation, Parameter, Route, argument, limit_argument

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from flask import Request

    from lowtide.core.ids import BatchId
    from lowtide.dead_letters.model import LetterSummary
    from lowtide.dead_letters.service import ShownLetter
    from lowtide.http.application import Call


_ERASED = "The response was deleted with the batch's error file."
_MAX_BODY_BYTES = 4 << 20
_MAX_ERROR_CODE = 256

_decode_requeue = msgspec.json.Decoder(types.RequeueDeadLetters).decode
_decode_discard = msgspec.json.Decoder(types.DiscardDeadLetters).decode


def page(call: Call) -> Response:
    """`GET /v1/dead_letters`."""
    after = argument(call.request, "after")
    letters, has_more = call.services.dead_letters.page(
        call.tenant,
        _filter(call.request),
        after=None if after is None else _require_letter_id(after, "after"),
        limit=limit_argument(call.request, max_limit=1000, default=100),
    )
    data = [types.DeadLetter(**types.fields_of(letter)) for letter in letters]
    body = types.DeadLetterPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more,
    )
    return json_response(body)


def summary(call: Call) -> Response:
    """`GET /v1/dead_letters/summary`."""
    counts = call.services.dead_letters.summary(call.tenant, _filter(call.request))
    return json_response(summary_object(counts))


def summary_object(summary: LetterSummary) -> types.DeadLetterSummary:
    """Return the counts of dead letters by error."""
    groups = [
        types.DeadLetterGroup(
            error_code=group.error_code, error_message=group.error_message, letters=group.letters
        )
        for group in summary.groups
    ]
    return types.DeadLetterSummary(total=summary.total, capped=summary.is_capped, groups=groups)


def get(call: Call, letter_id: str) -> Response:
    """`GET /v1/dead_letters/{letter_id}`."""
    view = call.services.dead_letters.get(call.tenant, _require_letter_id(letter_id, "letter_id"))
    return Response(details_json(view), mimetype="application/json")


def details_json(view: ShownLetter) -> Iterator[bytes]:
    """Return a dead letter with its input and its last response, in pieces."""
    answer = view.answer
    response, error = None, None
    line, body = (uuid.uuid4().hex.encode() for _ in range(2))
    if answer.status_code is None or view.body is None:
        message = _ERASED if view.is_erased else answer.error_message
        error = types.LastError(code=answer.error_code, message=message)
    else:
        response = types.LastAnswer(
            status_code=answer.status_code,
            request_id=answer.request_id or format_request_id(view.letter.batch, answer.number),
            body=msgspec.Raw(body),
        )
    details = types.DeadLetterDetails(
        **types.fields_of(view.letter),
        input=msgspec.Raw(b"null" if view.line is None else line),
        response=response,
        error=error,
    )
    # Both may have the max size of a request or response: they are inserted while streaming.
    encoded = msgspec.json.encode(details)
    pieces: list[Iterable[bytes]] = []
    for placeholder, value in ((line, view.line), (body, view.body)):
        if placeholder in encoded and value is not None:
            before, _, encoded = encoded.partition(placeholder)
            pieces += [[before], value]
    return chain(*pieces, [encoded])


def content(call: Call) -> Response:
    """`GET /v1/dead_letters/content`: NDJSON of inputs or of last responses."""
    text = argument(call.request, "which") or Content.INPUT.value
    if text not in set(Content):
        raise InvalidRequest(f"which must be one of {', '.join(Content)}.", param="which")
    letter_filter = _filter(call.request)
    headers = {"Content-Disposition": f'attachment; filename="dead_letters_{text}.jsonl"'}
    body: Iterator[bytes] = iter(())
    if call.request.method != "HEAD":
        pieces = call.services.dead_letters.download(
            call.tenant, letter_filter, Content(text), actor=call.caller.actor
        )
        # Reads the first piece before the response starts: a missing input becomes an error.
        body = chain([next(pieces, b"")], pieces)
    return Response(body, headers=headers, mimetype="application/x-ndjson")


def requeue(call: Call) -> Response:
    """`POST /v1/dead_letters/requeue`."""
    body = json_body(call.request, _decode_requeue, max_bytes=_MAX_BODY_BYTES)
    request = RequeueRequest(
        wanted=_selector(body),
        actor=call.caller.actor,
        completion_window=body.completion_window,
        idempotency_key=idempotency_key(call.request),
        idempotency_digest=digest_of(replace(body, dry_run=False)),
        dry_run=body.dry_run,
        pool=Pool(body.pool),
    )
    outcome = call.services.requeuer.requeue(call.tenant, request)
    answer = types.RequeuedDeadLetters(
        dry_run=body.dry_run,
        changed=outcome.changed,
        unchanged=outcome.unchanged,
        remaining=outcome.remaining,
        batches=[
            types.RequeuedBatch(
                source_batch_id=format_batch_id(requeued.source),
                batch_id=types.batch_id_or_none(requeued.batch),
                letters=requeued.letters,
            )
            for requeued in outcome.batches
        ],
    )
    return json_response(answer)


def discard(call: Call) -> Response:
    """`POST /v1/dead_letters/discard`."""
    body = json_body(call.request, _decode_discard, max_bytes=_MAX_BODY_BYTES)
    outcome = call.services.dead_letters.discard(
        call.tenant, _selector(body), actor=call.caller.actor, dry_run=body.dry_run
    )
    answer = types.DiscardedDeadLetters(
        dry_run=body.dry_run,
        changed=outcome.changed,
        unchanged=outcome.unchanged,
        remaining=outcome.remaining,
    )
    return json_response(answer)


def _selector(body: types.DiscardDeadLetters) -> Sequence[LetterId] | LetterFilter:
    if (body.ids is None) == (body.filter is None):
        raise InvalidRequest(
            "Select dead letters with either ids or filter.",
            param="ids" if body.ids is None else "filter",
        )
    if body.ids is not None:
        return [_require_letter_id(id_, "ids") for id_ in body.ids]
    filter_ = body.filter or types.DeadLetterFilter()
    batch = None if filter_.batch_id is None else _require_batch_id(filter_.batch_id, "filter")
    return LetterFilter(batch, filter_.error_code, error_message=filter_.error_message)


def _filter(request: Request) -> LetterFilter:
    """Read `batch_id`, `error_code`, `error_message` and `state`; raises InvalidRequest."""
    batch_id, state = (argument(request, name) for name in ("batch_id", "state"))
    error_code = _text_argument(request, "error_code", _MAX_ERROR_CODE)
    error_message = _text_argument(request, "error_message", MESSAGE_LENGTH)
    if state is not None and state not in set(LetterState):
        raise InvalidRequest(f"state must be one of {', '.join(LetterState)}.", param="state")
    return LetterFilter(
        None if batch_id is None else _require_batch_id(batch_id, "batch_id"),
        error_code,
        None if state is None else LetterState(state),
        error_message,
    )


def _text_argument(request: Request, name: str, max_length: int) -> str | None:
    text = argument(request, name)
    if text is not None and ("\x00" in text or len(text) > max_length):
        raise InvalidRequest(
            f"{name} must have at most {max_length} characters and no U+0000.", param=name
        )
    return text


def _require_batch_id(text: str, param: str) -> BatchId:
    batch = parse_batch_id(text)
    if batch is None:
        raise InvalidRequest(f"{text[:100]!r} is not a batch id.", param=param)
    return batch


def _require_letter_id(text: str, param: str) -> LetterId:
    position = parse_request_id(text)
    if position is None:
        raise NotFound(f"Dead letter {text[:100]!r} not found: check the id.", param=param)
    return LetterId(*position)


_BATCH = Parameter(
    "batch_id",
    "Only dead letters of this batch.",
    {"type": "string", "pattern": "^batch_[0-9a-f]{32}$"},
)
_ERROR_CODE = Parameter(
    "error_code",
    "Only dead letters with this error code, such as `http_500` or `worker_lost`.",
    {"type": "string", "pattern": r"^[^\u0000]*$", "maxLength": 256},
)
_ERROR_MESSAGE = Parameter(
    "error_message",
    "Only dead letters whose error message, cut to 200 characters, is this one.",
    {"type": "string", "pattern": r"^[^\u0000]*$", "maxLength": MESSAGE_LENGTH},
)
_STATE = Parameter(
    "state", "Only dead letters in this state.", {"enum": ["open", "requeued", "discarded"]}
)
_AFTER = Parameter(
    "after",
    "The last id of the previous page.",
    {"type": "string", "pattern": "^batch_req_[0-9a-f]{40}$"},
)
_LIMIT = Parameter(
    "limit",
    "Max objects per page.",
    {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
)
_WHICH = Parameter(
    "which",
    "`input`: the requests as JSONL; a file with those of one batch can be uploaded again. "
    "`output`: the last responses, in the format of the error file.",
    {"enum": ["input", "output"], "default": "input"},
)
_IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "A retry with the same key and body requeues nothing more and returns the batches of the first "
    "call; a different body is rejected with 422.",
    {"type": "string", "maxLength": 256},
    "header",
)
_BOUNDS = (
    f"One call processes up to {MAX_LETTERS:,} dead letters of {MAX_SOURCES} batches; `remaining` "
    "is the number of matches left for further calls."
)

READ = (
    Route(
        "GET",
        "/v1/dead_letters",
        page,
        Operation(
            "listDeadLetters",
            "List dead letters, newest first.",
            types.DeadLetterPage,
            parameters=(_AFTER, _LIMIT, _BATCH, _ERROR_CODE, _ERROR_MESSAGE, _STATE),
            errors=(404,),
            extension=True,
        ),
        scope=Scope.BATCHES_READ,
    ),
    Route(
        "GET",
        "/v1/dead_letters/summary",
        summary,
        Operation(
            "summarizeDeadLetters",
            "Count dead letters by error code and message.",
            types.DeadLetterSummary,
            parameters=(_BATCH, _ERROR_CODE, _ERROR_MESSAGE, _STATE),
            extension=True,
        ),
        scope=Scope.BATCHES_READ,
    ),
    Route(
        "GET",
        "/v1/dead_letters/content",
        content,
        Operation(
            "getDeadLetterContent",
            "Download inputs or last responses of dead letters as NDJSON, ordered by batch and line.",
            None,
            media="application/x-ndjson",
            parameters=(_WHICH, _BATCH, _ERROR_CODE, _ERROR_MESSAGE, _STATE),
            errors=(404, 409),
            extension=True,
        ),
        scope=Scope.BATCHES_READ,
    ),
    Route(
        "GET",
        # The min length excludes `requeue` and `discard`, which take no GET.
        "/v1/dead_letters/<string(minlength=10):letter_id>",
        get,
        Operation(
            "getDeadLetter",
            "Get a dead letter with its input and its last response.",
            types.DeadLetterDetails,
            errors=(404,),
            extension=True,
        ),
        scope=Scope.BATCHES_READ,
    ),
)

CHANGE = (
    Route(
        "POST",
        "/v1/dead_letters/requeue",
        requeue,
        Operation(
            "requeueDeadLetters",
            f"Requeue open dead letters: one new batch for each source batch. {_BOUNDS}",
            types.RequeuedDeadLetters,
            body=types.RequeueDeadLetters,
            parameters=(_IDEMPOTENCY_KEY,),
            errors=(404, 409, 413, 415, 422),
            extension=True,
        ),
        scope=Scope.DEAD_LETTERS_WRITE,
    ),
    Route(
        "POST",
        "/v1/dead_letters/discard",
        discard,
        Operation(
            "discardDeadLetters",
            f"Discard open dead letters. {_BOUNDS}",
            types.DiscardedDeadLetters,
            body=types.DiscardDeadLetters,
            errors=(404, 413, 415),
            extension=True,
        ),
        scope=Scope.DEAD_LETTERS_WRITE,
    ),
)

"""The routes of `/v1/dead_letters`: what only reads, and what creates batches or changes letters."""

from __future__ import annotations

from lowtide.domain.dead_letters import MOST_LETTERS, MOST_SOURCES
from lowtide.http import dead_letter_types as types
from lowtide.http import dead_letters
from lowtide.http.operations import Operation, Parameter, Route

_BATCH = Parameter(
    "batch_id",
    "Only letters of this batch.",
    {"type": "string", "pattern": "^batch_[0-9a-f]{32}$"},
)
_ERROR_CODE = Parameter(
    "error_code",
    "Only letters with this code, like `http_500` or `worker_lost`.",
    {"type": "string", "pattern": r"^[^\u0000]*$", "maxLength": 256},
)
_STATE = Parameter(
    "state", "Only letters in this state.", {"enum": ["open", "requeued", "discarded"]}
)
_AFTER = Parameter(
    "after",
    "The last id of the page before.",
    {"type": "string", "pattern": "^batch_req_[0-9a-f]{40}$"},
)
_LIMIT = Parameter(
    "limit",
    "Most objects of one page.",
    {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
)
_WHICH = Parameter(
    "which",
    "`input`: lines that can be uploaded again, those of one batch as they are; `output`: the last "
    "answers, in the shape of the error file.",
    {"enum": ["input", "output"], "default": "input"},
)
_IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "A retry with the same key and body requeues nothing more and returns the batches of the first; "
    "another body is 422.",
    {"type": "string", "maxLength": 256},
    "header",
)
_BOUNDS = (
    f"One call takes up to {MOST_LETTERS:,} letters of {MOST_SOURCES} batches; `remaining` tells how "
    "many a filter left for the next."
)

READ = (
    Route(
        "GET",
        "/v1/dead_letters",
        dead_letters.page,
        Operation(
            "listDeadLetters",
            "List dead letters, newest first.",
            types.DeadLetterPage,
            parameters=(_AFTER, _LIMIT, _BATCH, _ERROR_CODE, _STATE),
            errors=(400, 404),
            extension=True,
        ),
    ),
    Route(
        "GET",
        "/v1/dead_letters/content",
        dead_letters.content,
        Operation(
            "getDeadLetterContent",
            "Download inputs or last answers of dead letters as NDJSON, in order of batch and line.",
            None,
            media="application/x-ndjson",
            parameters=(_WHICH, _BATCH, _ERROR_CODE, _STATE),
            errors=(400, 409),
            extension=True,
        ),
    ),
    Route(
        "GET",
        # Too long for the verbs beside it, which take no GET.
        "/v1/dead_letters/<string(minlength=10):letter_id>",
        dead_letters.get,
        Operation(
            "getDeadLetter",
            "Get a dead letter with its line and its last answer.",
            types.DeadLetterDetails,
            errors=(404,),
            extension=True,
        ),
    ),
)

CHANGE = (
    Route(
        "POST",
        "/v1/dead_letters/requeue",
        dead_letters.requeue,
        Operation(
            "requeueDeadLetters",
            f"Run open dead letters again, in a new batch for each batch they come from. {_BOUNDS}",
            types.RequeuedDeadLetters,
            body=types.RequeueDeadLetters,
            parameters=(_IDEMPOTENCY_KEY,),
            errors=(400, 404, 409, 413, 415, 422),
            extension=True,
        ),
    ),
    Route(
        "POST",
        "/v1/dead_letters/discard",
        dead_letters.discard,
        Operation(
            "discardDeadLetters",
            f"Give up on open dead letters. {_BOUNDS}",
            types.DiscardedDeadLetters,
            body=types.DiscardDeadLetters,
            errors=(400, 404, 413, 415),
            extension=True,
        ),
    ),
)

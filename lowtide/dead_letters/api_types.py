"""The JSON objects of `/v1/dead_letters`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lowtide.core import ids
from lowtide.dead_letters.model import MAX_LETTERS, MESSAGE_LENGTH
from lowtide.http import types

if TYPE_CHECKING:
    from lowtide.dead_letters import model

BatchId = types.BatchId
Seconds = types.Seconds
Window = types.Window
RequestId = Annotated[str, Meta(pattern="^batch_req_[0-9a-f]{40}$")]
ErrorCode = Annotated[str, Meta(pattern=r"^[^\u0000]*$", max_length=256)]
ErrorMessage = Annotated[str, Meta(pattern=r"^[^\u0000]*$", max_length=MESSAGE_LENGTH)]
State = Literal["open", "requeued", "discarded"]


class DeadLetter(msgspec.Struct, kw_only=True):
    """A dead-lettered request: it exhausted its attempts, or took down several workers.

    `error_code` is `http_` and the status if the engine's last response was an HTTP error;
    `ended_by` is the key that requeued or discarded it.
    """

    id: RequestId
    batch_id: BatchId
    line: int
    custom_id: str | None
    state: State
    attempts: int
    status_code: int | None
    error_code: str | None
    error_message: str | None
    created_at: Seconds
    ended_at: Seconds | None
    ended_by: str | None
    requeued_as: BatchId | None
    object: Literal["dead_letter"] = "dead_letter"


def batch_id_or_none(batch: ids.BatchId | None) -> str | None:
    return None if batch is None else ids.format_batch_id(batch)


def fields_of(letter: model.DeadLetter) -> dict[str, Any]:
    """Return the fields of a dead letter's object."""
    return {
        "id": ids.format_request_id(letter.batch, letter.line),
        "batch_id": ids.format_batch_id(letter.batch),
        "line": letter.line,
        "custom_id": letter.custom_id or None,
        "state": letter.state.value,
        "attempts": letter.attempts,
        "status_code": letter.status_code,
        "error_code": letter.error_code,
        "error_message": letter.error_message,
        "created_at": types.unix(letter.died_at),
        "ended_at": types.unix_or_none(letter.ended_at),
        "ended_by": letter.actor,
        "requeued_as": batch_id_or_none(letter.requeued_as),
    }


class LastAnswer(msgspec.Struct, kw_only=True):
    """The engine's last response, as in the error file; `body` is its unchanged JSON."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LastError(msgspec.Struct, kw_only=True):
    """The reason for a missing response."""

    code: str | None
    message: str | None


class DeadLetterDetails(DeadLetter, kw_only=True):
    """A dead letter with its input, null if the input file is gone, and its last response."""

    input: msgspec.Raw
    response: LastAnswer | None
    error: LastError | None


class DeadLetterPage(msgspec.Struct, kw_only=True):
    """One page of dead letters, newest first."""

    data: list[DeadLetter]
    first_id: RequestId | None
    last_id: RequestId | None
    has_more: bool
    object: Literal["list"] = "list"


class DeadLetterGroup(msgspec.Struct, kw_only=True):
    """The dead letters with one error; `error_message` is its first 200 characters."""

    error_code: str | None
    error_message: str | None
    letters: int


class DeadLetterSummary(msgspec.Struct, kw_only=True):
    """The number of dead letters, and up to 20 errors with the most of them.

    Counting stops at 10,000 dead letters, the newest ones; `capped` is true then.
    """

    total: int
    capped: bool
    groups: list[DeadLetterGroup]
    object: Literal["dead_letter.summary"] = "dead_letter.summary"


class DeadLetterFilter(msgspec.Struct, forbid_unknown_fields=True):
    """A filter for open dead letters; without any field it matches all of them."""

    batch_id: BatchId | None = None
    error_code: ErrorCode | None = None
    error_message: ErrorMessage | None = None


class DiscardDeadLetters(msgspec.Struct, forbid_unknown_fields=True):
    """Either `ids` or `filter`; a dry run only counts."""

    ids: Annotated[list[RequestId], Meta(min_length=1, max_length=MAX_LETTERS)] | None = None
    filter: DeadLetterFilter | None = None
    dry_run: bool = False


class RequeueDeadLetters(DiscardDeadLetters, forbid_unknown_fields=True):
    """Either `ids` or `filter`; each new batch has its source's window unless one is given.

    Requests are queued in spot, from where a deadline may move them, or in dedicated, where they
    stay.
    """

    completion_window: Window | None = None
    pool: Literal["spot", "dedicated"] = "spot"


class DiscardedDeadLetters(msgspec.Struct, kw_only=True):
    """Counts of dead letters: discarded (or matched by a dry run), ended earlier, and remaining."""

    dry_run: bool
    changed: int
    unchanged: int
    remaining: int
    object: Literal["dead_letter.discard"] = "dead_letter.discard"


class RequeuedBatch(msgspec.Struct, kw_only=True):
    """The number of dead letters of one batch, and their new batch; null for a dry run."""

    source_batch_id: BatchId
    batch_id: BatchId | None
    letters: int


class RequeuedDeadLetters(msgspec.Struct, kw_only=True):
    """Counts of dead letters: requeued (or matched by a dry run), ended earlier, and remaining.

    `batches` has the new batches and those of earlier calls for the same dead letters.
    """

    dry_run: bool
    changed: int
    unchanged: int
    remaining: int
    batches: list[RequeuedBatch]
    object: Literal["dead_letter.requeue"] = "dead_letter.requeue"

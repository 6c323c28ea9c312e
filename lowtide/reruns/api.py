"""`/v1/reruns` and `/v1/batches/{batch_id}/failed_inputs`, extensions to OpenAI's API."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from flask import Response
from msgspec import Meta
from msgspec.structs import replace

from lowtide.batches.api import require_batch_id
from lowtide.core.errors import InvalidRequest
from lowtide.core.ids import format_batch_id
from lowtide.core.scopes import Scope
from lowtide.http import types
from lowtide.http.application import json_response
from lowtide.http.bodies import digest_of, idempotency_key, json_body
from lowtide.http.operations import IDEMPOTENCY_KEY, Operation, Parameter, Route
from lowtide.reruns.service import ANY, RerunRequest
from lowtide.reruns.store import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.http.application import Call


BatchId = types.BatchId
Window = types.Window
Outcome = Literal["Failed", "Expired", "Cancelled"]
_MAX_BODY_BYTES = 1 << 16


class CreateRerun(msgspec.Struct, forbid_unknown_fields=True):
    """The batch whose failed requests run again; without `outcomes` all of them.

    Without a window the new batch has that of its source. A dry run only counts.
    """

    batch_id: BatchId
    outcomes: Annotated[list[Outcome], Meta(min_length=1, max_length=3)] | None = None
    completion_window: Window | None = None
    dry_run: bool = False


class Rerun(msgspec.Struct, kw_only=True):
    """The number of requests that run again, and their new batch; null for a dry run."""

    dry_run: bool
    source_batch_id: BatchId
    batch_id: BatchId | None
    requests: int
    object: Literal["rerun"] = "rerun"


_decode = msgspec.json.Decoder(CreateRerun).decode


def create(call: Call) -> Response:
    """`POST /v1/reruns`."""
    body = json_body(call.request, _decode, max_bytes=_MAX_BODY_BYTES)
    source = require_batch_id(body.batch_id)
    outcomes = ANY if body.outcomes is None else frozenset(map(Failure, body.outcomes))
    if body.dry_run:
        counts = call.services.reruns.plan(call.tenant, source).counts
        batch, requests = None, sum(counts[outcome] for outcome in outcomes)
    else:
        request = RerunRequest(
            source,
            call.caller.actor,
            outcomes,
            body.completion_window,
            idempotency_key(call.request),
            digest_of(replace(body, outcomes=sorted(outcomes))),
        )
        rerun = call.services.reruns.rerun(call.tenant, request)
        batch, requests = format_batch_id(rerun.batch), rerun.requests
    answer = Rerun(
        dry_run=body.dry_run,
        source_batch_id=format_batch_id(source),
        batch_id=batch,
        requests=requests,
    )
    return json_response(answer)


def failed_inputs(call: Call, batch_id: str) -> Response:
    """`GET /v1/batches/{batch_id}/failed_inputs`: NDJSON in input order."""
    batch = require_batch_id(batch_id)
    names = [name for name in call.request.args.getlist("outcome") if name]
    unknown = set(names).difference(Failure)
    if unknown:
        raise InvalidRequest(f"outcome must be one of {', '.join(Failure)}.", param="outcome")
    outcomes = frozenset(map(Failure, names)) or ANY
    headers = {
        "Content-Disposition": f'attachment; filename="{format_batch_id(batch)}_failed.jsonl"'
    }
    body: Iterator[bytes] = iter(())
    if call.request.method != "HEAD":
        pieces = call.services.reruns.inputs(call.tenant, batch, outcomes, actor=call.caller.actor)
        # Reads the first piece before the response starts: a missing input becomes an error.
        body = chain([next(pieces, b"")], pieces)
    return Response(body, headers=headers, mimetype="application/x-ndjson")


_OUTCOME = Parameter(
    "outcome",
    "Only requests with this outcome; repeat it for several. The default is all three.",
    {"type": "array", "items": {"enum": [failure.value for failure in Failure]}},
)

CREATE = (
    Route(
        "POST",
        "/v1/reruns",
        create,
        Operation(
            "createRerun",
            "Run the failed, expired and cancelled requests of an ended batch again, in a new batch "
            "with the same endpoint and window. Its open dead letters become requeued.",
            Rerun,
            body=CreateRerun,
            parameters=(IDEMPOTENCY_KEY,),
            errors=(400, 404, 409, 413, 415, 422),
            extension=True,
        ),
        scope=Scope.BATCHES_WRITE,
    ),
)

READ = (
    Route(
        "GET",
        "/v1/batches/<batch_id>/failed_inputs",
        failed_inputs,
        Operation(
            "getFailedInputs",
            "Download the input lines of failed, expired and cancelled requests as NDJSON. Dead "
            "letters that were requeued or discarded are left out.",
            None,
            media="application/x-ndjson",
            parameters=(_OUTCOME,),
            errors=(400, 404, 409),
            extension=True,
        ),
        scope=Scope.BATCHES_READ,
    ),
)

"""Encryption of what an engine said to requests with zero retention, before it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from lowtide.engines.attribution import kind_of, reason_of
from lowtide.objects.names import KeyDestroyed
from lowtide.queue.claims import Finished

if TYPE_CHECKING:
    from lowtide.batches.sealed_answers import Answers
    from lowtide.engines.outcomes import Outcome
    from lowtide.queue.claims import Claim, Returned


def sealed_result(request: Finished, answers: Answers) -> Finished:
    """Return a result with encrypted texts; a failure if the key was destroyed meanwhile."""
    if request.data_key is None:
        return request
    tenant, _ = request.data_key
    body, message = request.body, request.error_message
    try:
        if body is not None:
            body = answers.seal(tenant, request.batch, request.line, body)
        if message is not None:
            message = answers.seal(tenant, request.batch, request.line, message.encode()).decode()
    except KeyDestroyed as error:
        return Finished(
            request.batch,
            request.line,
            succeeded=False,
            attempts=request.attempts,
            usage=request.usage,
            error_code=error.code,
            error_message=error.message,
            replica_seconds=request.replica_seconds,
        )
    return replace(request, body=body, error_message=message, data_key=None)


def sealed_release(request: Returned, answers: Answers) -> Returned:
    """Return a release with an encrypted reason; without one if the key was destroyed."""
    if request.data_key is None:
        return request
    tenant, _ = request.data_key
    try:
        sealed = answers.seal(tenant, request.batch, request.line, request.reason.encode())
        reason = sealed.decode()
    except KeyDestroyed as error:
        reason = error.message
    return replace(request, reason=reason, data_key=None)


def public_reason(claim: Claim, outcome: Outcome) -> str:
    """Return the reason for an unsuccessful outcome, without words of a request's own engine answer.

    Reasons are logged, and shown with the worker.
    """
    if claim.data_key is None:
        return reason_of(outcome)
    return f"A request with zero retention failed: {kind_of(outcome)}"

"""What an engine's outcome means for a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.domain.claims import Claim, Finished, Returned
from lowtide.domain.outcomes import Answered, BadInput, Interrupted, Usage

if TYPE_CHECKING:
    from random import Random

    from lowtide.domain.outcomes import Outcome, RetryPolicy


def settle_line(
    claim: Claim,
    outcome: Outcome,
    policy: RetryPolicy,
    rng: Random,
    *,
    replica_seconds: float = 0.0,
) -> Finished | Returned:
    """Return how the line ends, or why and when it is tried again.

    `replica_seconds` is the part of its worker's time that this attempt had.
    """
    if isinstance(outcome, Interrupted):
        return Returned(claim.batch, claim.line, outcome.reason, interrupted=True)
    if isinstance(outcome, BadInput):
        return _unreadable(claim, outcome)
    attempts = claim.attempts + 1
    succeeded = isinstance(outcome, Answered) and outcome.succeeded
    if not succeeded:
        delay = policy.delay(outcome, attempts, rng)
        if delay is not None:
            reason = (
                f"The engine answered HTTP {outcome.status_code}"
                if isinstance(outcome, Answered)
                else outcome.message
            )
            return Returned(claim.batch, claim.line, reason, delay=delay, failed=True)
    exhausted = not succeeded and policy.is_transient(outcome)
    if isinstance(outcome, Answered):
        return Finished(
            claim.batch,
            claim.line,
            succeeded,
            attempts,
            outcome.usage,
            status_code=outcome.status_code,
            request_id=outcome.request_id,
            body=outcome.body,
            dead_letter=exhausted,
            replica_seconds=replica_seconds,
        )
    return Finished(
        claim.batch,
        claim.line,
        succeeded=False,
        attempts=attempts,
        usage=Usage(),
        error_code=outcome.code,
        error_message=outcome.message,
        dead_letter=exhausted,
        replica_seconds=replica_seconds,
    )


def _unreadable(claim: Claim, outcome: BadInput) -> Finished:
    """Return the end of a request that was never sent: no attempt is counted."""
    return Finished(
        claim.batch,
        claim.line,
        succeeded=False,
        attempts=claim.attempts,
        usage=Usage(),
        error_code=outcome.code,
        error_message=outcome.message,
    )

"""Settlement: the consequence of an engine's outcome for a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.core.durations import requeue_delay
from lowtide.engines.attribution import Fault, reason_of
from lowtide.engines.outcomes import Answered, BadInput, Interrupted, Unanswered, Usage, Window
from lowtide.queue.claims import Claim, Finished, Returned

if TYPE_CHECKING:
    from random import Random

    from lowtide.engines.outcomes import Outcome, RetryPolicy


def settle_line(
    claim: Claim,
    outcome: Outcome,
    fault: Fault | None,
    policy: RetryPolicy,
    rng: Random,
    *,
    age: float = 0.0,
    replica_seconds: float = 0.0,
    at_once: bool = True,
) -> Finished | Returned:
    """Return the end of the request, or its release with the reason and the delay.

    `age` is the seconds since the claim, the max that the run can have taken; `replica_seconds` is
    this attempt's share of the worker's time. After an engine fault the request is available
    `at_once`, unless the same worker would claim it again.
    """
    if fault is None and isinstance(outcome, Answered):
        return _finished(claim, outcome, succeeded=True, exhausted=False, seconds=replica_seconds)
    if isinstance(outcome, Interrupted):
        return Returned(claim.batch, claim.line, outcome.reason, interrupted=True)
    if isinstance(outcome, BadInput):
        return _unreadable(claim, outcome)
    window = Window(claim.due_in - age, age)
    if fault is not None:
        delay = _delay(claim, outcome, fault, policy, rng, window=window, at_once=at_once)
        if delay is not None:
            failed = fault is Fault.REQUEST
            return Returned(claim.batch, claim.line, reason_of(outcome), delay, failed=failed)
    exhausted = fault is not None and policy.is_transient(outcome)
    return _finished(
        claim, outcome, succeeded=fault is None, exhausted=exhausted, seconds=replica_seconds
    )


def _finished(
    claim: Claim,
    outcome: Answered | Unanswered,
    *,
    succeeded: bool,
    exhausted: bool,
    seconds: float,
) -> Finished:
    attempts = claim.attempts + 1
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
            replica_seconds=seconds,
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
        replica_seconds=seconds,
    )


def _delay(
    claim: Claim,
    outcome: Answered | Unanswered,
    fault: Fault,
    policy: RetryPolicy,
    rng: Random,
    *,
    window: Window,
    at_once: bool,
) -> float | None:
    """Return the seconds until the next attempt; None if this was the last one."""
    if fault is Fault.BACK_PRESSURE:
        retry_after = outcome.retry_after if isinstance(outcome, Answered) else None
        delay = rng.uniform(0.0, policy.base) if retry_after is None else retry_after
        return policy.bounded(delay, window)
    if fault is Fault.ENGINE:
        delay = 0.0 if at_once else requeue_delay(claim.waited, rng, cap=policy.cap)
        return policy.bounded(delay, window)
    return policy.delay(outcome, claim.attempts + 1, rng, window)


def _unreadable(claim: Claim, outcome: BadInput) -> Finished:
    """Return the failure of a request that was never sent: no attempt is counted."""
    return Finished(
        claim.batch,
        claim.line,
        succeeded=False,
        attempts=claim.attempts,
        usage=Usage(),
        error_code=outcome.code,
        error_message=outcome.message,
    )

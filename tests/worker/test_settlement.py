"""Settlement of one request, by the engine's outcome and earlier attempts."""

from __future__ import annotations

import math
import uuid
from random import Random
from typing import TYPE_CHECKING

import pytest

from lowtide.core.ids import BatchId
from lowtide.engines.attribution import EngineState, Fault, attribute
from lowtide.engines.outcomes import Answered, BadInput, Interrupted, RetryPolicy, Unanswered, Usage
from lowtide.queue.claims import Claim, Finished, Returned
from lowtide.worker.settlement import settle_line

if TYPE_CHECKING:
    from lowtide.engines.outcomes import Outcome

BATCH = BatchId(uuid.UUID(int=1))
POLICY = RetryPolicy(max_attempts=3, base=1.0, cap=8.0)


def _settle(
    outcome: Outcome,
    attempts: int,
    fault: Fault | None = None,
    *,
    at_once: bool = True,
    due_in: float = math.inf,
    age: float = 0.0,
) -> Finished | Returned:
    claim = Claim(
        BATCH, "/v1/embeddings", "files/x", 4, 0, 10, attempts, 0, waited=8.0, due_in=due_in
    )
    if fault is None:
        fault = attribute(outcome, EngineState(answers_others=True))
    rng = Random(1)  # noqa: S311
    return settle_line(claim, outcome, fault, POLICY, rng, at_once=at_once, age=age)


@pytest.mark.parametrize("before", [0, 1, 2, 9])
@pytest.mark.parametrize("status", [200, 201, 299])
def test_success_finishes_request(before: int, status: int) -> None:
    outcome = Answered(status, b"{}", "req", Usage(3, 4))
    assert _settle(outcome, before) == Finished(
        BATCH, 4, succeeded=True, attempts=before + 1, usage=Usage(3, 4),
        status_code=status, request_id="req", body=b"{}",
    )  # fmt: skip


@pytest.mark.parametrize("before", [0, 1, 2, 9])
def test_interruption_counts_no_attempt(before: int) -> None:
    assert _settle(Interrupted("gone"), before) == Returned(BATCH, 4, "gone", interrupted=True)


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("status", [400, 404, 405, 422])
def test_permanent_failure_finishes_without_dead_letter(before: int, status: int) -> None:
    finished = _settle(Answered(status, b"{}"), before)
    assert isinstance(finished, Finished)
    assert (finished.succeeded, finished.dead_letter, finished.attempts) == (
        False,
        False,
        before + 1,
    )
    assert (finished.status_code, finished.body) == (status, b"{}")


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        pytest.param(Answered(500, b"busy"), "The engine returned HTTP 500", id="HTTP 500"),
        pytest.param(Unanswered("timeout", "too slow"), "too slow", id="no answer"),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_transient_failure_is_retried_after_delay(
    outcome: Outcome, reason: str, before: int
) -> None:
    retried = _settle(outcome, before)
    assert isinstance(retried, Returned)
    assert (retried.reason, retried.failed, retried.interrupted) == (reason, True, False)
    assert 2.0**before <= retried.delay <= 2.0 ** (before + 1)


def test_last_transient_failure_is_dead_lettered_with_response() -> None:
    finished = _settle(Answered(500, b'{"error":1}', "req"), 2)
    assert finished == Finished(
        BATCH, 4, succeeded=False, attempts=3, usage=Usage(), status_code=500, request_id="req",
        body=b'{"error":1}', dead_letter=True,
    )  # fmt: skip


def test_last_timeout_is_dead_lettered_with_error_code() -> None:
    finished = _settle(Unanswered("timeout", "too slow"), 2)
    assert finished == Finished(
        BATCH, 4, succeeded=False, attempts=3, usage=Usage(), error_code="timeout",
        error_message="too slow", dead_letter=True,
    )  # fmt: skip


ENGINE_FAULTS = {
    "refused": Unanswered("connection_error", "The engine could not be reached"),
    "HTTP 500 to all": Answered(500, b"{}"),
    "HTTP 401": Answered(401, b"{}"),
    "HTTP 503": Answered(503, b"{}"),
}


@pytest.mark.parametrize("outcome", ENGINE_FAULTS.values(), ids=ENGINE_FAULTS.keys())
@pytest.mark.parametrize("before", [0, 2, 9])
def test_engine_fault_releases_request_without_attempt(outcome: Outcome, before: int) -> None:
    released = _settle(outcome, before, Fault.ENGINE)
    assert isinstance(released, Returned)
    assert (released.delay, released.failed, released.interrupted) == (0.0, False, False)
    delayed = _settle(outcome, before, Fault.ENGINE, at_once=False)
    assert isinstance(delayed, Returned)
    assert 1.0 <= delayed.delay <= 2.0


@pytest.mark.parametrize("before", [0, 2, 9])
@pytest.mark.parametrize(
    ("retry_after", "due_in", "delay"),
    [(3.0, math.inf, 3.0), (1e12, math.inf, 8.0), (1e12, 12.0, 2.0), (1e12, 4.0, 0.0)],
)
def test_back_pressure_counts_no_attempt_and_delay_is_bounded(
    before: int, retry_after: float, due_in: float, delay: float
) -> None:
    busy = Answered(429, b"{}", retry_after=retry_after)
    released = _settle(busy, before, Fault.BACK_PRESSURE, due_in=due_in, age=5.0)
    assert isinstance(released, Returned)
    assert (released.failed, released.interrupted) == (False, False)
    assert released.delay == delay


def test_bad_input_finishes_request_without_attempt() -> None:
    finished = _settle(BadInput("input_corrupt", "not what was uploaded"), 1, Fault.INPUT)
    assert finished == Finished(
        BATCH, 4, succeeded=False, attempts=1, usage=Usage(), error_code="input_corrupt",
        error_message="not what was uploaded",
    )  # fmt: skip

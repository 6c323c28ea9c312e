"""What becomes of a line, by the engine's outcome and the attempts before."""

from __future__ import annotations

import uuid
from random import Random
from typing import TYPE_CHECKING

import pytest

from lowtide.domain.claims import Claim, Finished, Returned
from lowtide.domain.ids import BatchId
from lowtide.domain.outcomes import Answered, Interrupted, RetryPolicy, Unanswered, Usage
from lowtide.domain.settlement import settle_line

if TYPE_CHECKING:
    from lowtide.domain.outcomes import Outcome

BATCH = BatchId(uuid.UUID(int=1))
POLICY = RetryPolicy(max_attempts=3, base=1.0, cap=8.0)


def _settle(outcome: Outcome, attempts: int) -> Finished | Returned:
    claim = Claim(BATCH, "/v1/embeddings", "files/x", 4, 0, 10, attempts, 0)
    return settle_line(claim, outcome, POLICY, Random(1))  # noqa: S311


@pytest.mark.parametrize("before", [0, 1, 2, 9])
@pytest.mark.parametrize("status", [200, 201, 299])
def test_success_ends_the_line(before: int, status: int) -> None:
    outcome = Answered(status, "{}", "req", Usage(3, 4))
    assert _settle(outcome, before) == Finished(
        BATCH, 4, succeeded=True, attempts=before + 1, usage=Usage(3, 4),
        status_code=status, request_id="req", body="{}",
    )  # fmt: skip


@pytest.mark.parametrize("before", [0, 1, 2, 9])
def test_an_interruption_never_counts(before: int) -> None:
    assert _settle(Interrupted("gone"), before) == Returned(BATCH, 4, "gone", interrupted=True)


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("status", [400, 401, 404, 422, 302])
def test_a_permanent_failure_ends_at_once_without_a_dead_letter(before: int, status: int) -> None:
    ended = _settle(Answered(status, "{}"), before)
    assert isinstance(ended, Finished)
    assert (ended.succeeded, ended.dead_letter, ended.attempts) == (False, False, before + 1)
    assert (ended.status_code, ended.body) == (status, "{}")


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        pytest.param(Answered(503, "busy"), "The engine answered HTTP 503", id="HTTP 503"),
        pytest.param(Unanswered("timeout", "too slow"), "too slow", id="no answer"),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_a_transient_failure_is_tried_again(outcome: Outcome, reason: str, before: int) -> None:
    again = _settle(outcome, before)
    assert isinstance(again, Returned)
    assert (again.reason, again.failed, again.interrupted) == (reason, True, False)
    assert 0 <= again.delay <= 2.0**before


def test_the_last_transient_failure_is_a_dead_letter_with_the_answer() -> None:
    ended = _settle(Answered(500, '{"error":1}', "req"), 2)
    assert ended == Finished(
        BATCH, 4, succeeded=False, attempts=3, usage=Usage(), status_code=500, request_id="req",
        body='{"error":1}', dead_letter=True,
    )  # fmt: skip


def test_the_last_silence_is_a_dead_letter_with_its_code() -> None:
    ended = _settle(Unanswered("timeout", "too slow"), 2)
    assert ended == Finished(
        BATCH, 4, succeeded=False, attempts=3, usage=Usage(), error_code="timeout",
        error_message="too slow", dead_letter=True,
    )  # fmt: skip

"""Delays of idle workers and of retries."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.durations import ExponentialBackoff, requeue_delay, retry_delay
from lowtide.engines.outcomes import Answered, RetryPolicy, Unanswered, Window


def _seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311


ORIGINAL = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_idle_backoff_equals_original() -> None:
    backoff = ExponentialBackoff()
    assert [backoff.next_delay() for _ in ORIGINAL] == ORIGINAL


@pytest.mark.parametrize("steps", [0, 1, 5, 8])
def test_reset_restarts_backoff(steps: int) -> None:
    backoff = ExponentialBackoff()
    for _ in range(steps):
        backoff.next_delay()
    backoff.reset()
    assert [backoff.next_delay() for _ in ORIGINAL] == ORIGINAL


@given(st.integers(0, 100), st.integers())
def test_retry_delay_doubles_with_full_jitter_above_floor(attempt: int, seed: int) -> None:
    delay = retry_delay(attempt, _seeded(seed), base=1.0, cap=60.0)
    assert min(60.0, 2.0**attempt) <= delay <= min(60.0, 2.0 ** (attempt + 1))


def test_jitter_covers_whole_range() -> None:
    rng = _seeded(7)
    delays = [retry_delay(4, rng, base=1.0, cap=60.0) for _ in range(2000)]
    assert min(delays) < 16.5
    assert max(delays) > 31.5
    assert 23.5 < sum(delays) / len(delays) < 24.5


FAILED = Answered(500, b"{}")


@given(st.integers())
def test_five_failures_take_two_to_four_minutes(seed: int) -> None:
    policy, rng = RetryPolicy(), _seeded(seed)
    delays = [policy.delay(FAILED, attempts, rng) for attempts in range(1, 5)]
    assert 120 <= sum(delay or 0.0 for delay in delays) <= 240
    assert policy.delay(FAILED, 5, rng) is None


@given(st.integers(), st.floats(0, 1000), st.floats(0, 100))
def test_delayed_attempts_finish_before_deadline(
    seed: int, remaining: float, duration: float
) -> None:
    policy, rng, elapsed = RetryPolicy(), _seeded(seed), 0.0
    for attempts in range(1, 5):
        delay = policy.delay(FAILED, attempts, rng, Window(remaining - elapsed, duration))
        assert delay is not None
        assert delay >= 0
        if delay:
            assert elapsed + delay + duration <= remaining + 1e-6
        elapsed += delay + duration


@pytest.mark.parametrize("retry_after", [90.0, 1e12, 251_727_436_800.0])
@pytest.mark.parametrize("remaining", [math.inf, 3600.0, 100.0, 5.0, -3.0])
def test_retry_after_is_limited_by_cap_and_deadline(retry_after: float, remaining: float) -> None:
    outcome = Answered(500, b"{}", retry_after=retry_after)
    policy = RetryPolicy(base=0.01)
    delay = policy.delay(outcome, 4, _seeded(0), Window(remaining, 20.0))
    assert delay == max(0.0, min(retry_after, 120.0, remaining - 20.0))


@given(st.floats(0, 1e7), st.integers())
def test_requeue_delay_grows_with_time_waited(waited: float, seed: int) -> None:
    delay = requeue_delay(waited, _seeded(seed), cap=120.0)
    assert 0.5 <= delay <= 120.0
    assert delay >= min(120.0, waited / 4) / 2


@pytest.mark.parametrize(
    ("outcome", "retried"),
    [
        *(
            pytest.param(Answered(status, b"{}"), True, id=f"HTTP {status}")
            for status in (408, 409, 425, 429, 500, 502, 503, 504, 599)
        ),
        *(
            pytest.param(Answered(status, b"{}"), False, id=f"HTTP {status}")
            for status in (300, 400, 401, 403, 404, 413, 422, 600)
        ),
        pytest.param(Unanswered("timeout", "too slow"), True, id="no answer"),
        pytest.param(Unanswered("response_too_large", "huge"), False, id="too large"),
    ],
)
def test_only_transient_failures_are_retried(
    outcome: Answered | Unanswered, *, retried: bool
) -> None:
    policy = RetryPolicy(max_attempts=3)
    assert (policy.delay(outcome, 2, _seeded(0)) is not None) is retried
    assert policy.delay(outcome, 3, _seeded(0)) is None

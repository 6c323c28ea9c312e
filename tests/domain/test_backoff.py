"""Delays of idle workers and of retries."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.domain.backoff import ExponentialBackoff, retry_delay
from lowtide.domain.outcomes import Answered, RetryPolicy, Unanswered


def _seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311


ORIGINAL = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_it_waits_as_the_original_did() -> None:
    backoff = ExponentialBackoff()
    assert [backoff.next_delay() for _ in ORIGINAL] == ORIGINAL


@pytest.mark.parametrize("steps", [0, 1, 5, 8])
def test_a_reset_starts_over(steps: int) -> None:
    backoff = ExponentialBackoff()
    for _ in range(steps):
        backoff.next_delay()
    backoff.reset()
    assert [backoff.next_delay() for _ in ORIGINAL] == ORIGINAL


class _Highest(Random):
    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return b


@pytest.mark.parametrize(
    ("attempt", "ceiling"),
    [(0, 1.0), (1, 2.0), (2, 4.0), (5, 32.0), (6, 60.0), (7, 60.0), (5000, 60.0)],
)
def test_the_ceiling_doubles_up_to_the_cap(attempt: int, ceiling: float) -> None:
    assert retry_delay(attempt, _Highest(), base=1.0, cap=60.0) == ceiling


@given(st.integers(0, 100), st.integers(), st.floats(0, 600))
def test_full_jitter_unless_retry_after_is_longer(attempt: int, seed: int, after: float) -> None:
    ceiling = min(60.0, 2.0**attempt)
    plain = retry_delay(attempt, _seeded(seed), base=1.0, cap=60.0)
    assert 0.0 <= plain <= ceiling
    told = retry_delay(attempt, _seeded(seed), base=1.0, cap=60.0, retry_after=after)
    assert told == max(plain, after)


def test_jitter_spreads_over_the_whole_range() -> None:
    rng = _seeded(7)
    delays = [retry_delay(4, rng, base=1.0, cap=60.0) for _ in range(2000)]
    assert min(delays) < 0.5
    assert max(delays) > 15.5
    assert 7.5 < sum(delays) / len(delays) < 8.5


@pytest.mark.parametrize(
    ("outcome", "again"),
    [
        *(
            pytest.param(Answered(status, "{}"), True, id=f"HTTP {status}")
            for status in (408, 409, 425, 429, 500, 502, 503, 504, 599)
        ),
        *(
            pytest.param(Answered(status, "{}"), False, id=f"HTTP {status}")
            for status in (300, 400, 401, 403, 404, 413, 422, 600)
        ),
        pytest.param(Unanswered("timeout", "too slow"), True, id="no answer"),
    ],
)
def test_only_transient_failures_are_tried_again(
    outcome: Answered | Unanswered, *, again: bool
) -> None:
    policy = RetryPolicy(max_attempts=3)
    assert (policy.delay(outcome, 2, _seeded(0)) is not None) is again
    assert policy.delay(outcome, 3, _seeded(0)) is None


def test_a_longer_retry_after_is_kept() -> None:
    outcome = Answered(429, "{}", retry_after=90.0)
    assert RetryPolicy().delay(outcome, 1, _seeded(0)) == 90.0

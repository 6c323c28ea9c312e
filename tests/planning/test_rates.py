"""Measured rates and their lower bounds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.planning.demand import HALF_LIFE, Rate, RateSample, attempts_per_line

_samples = st.lists(
    st.builds(RateSample, st.integers(0, 10_000), st.floats(0.1, 600.0)), min_size=1, max_size=30
)


def test_prior_applies_without_data() -> None:
    assert Rate().lower_bound(2.0) == 2.0
    assert Rate().fold([RateSample(5, 0.0)]).lower_bound(2.0) == 2.0
    assert Rate().mean is None


@pytest.mark.parametrize(
    ("samples", "prior", "bound"),
    [
        pytest.param([RateSample(400, 100.0)] * 100, 4.0, 4.0, id="steady, as expected"),
        pytest.param([RateSample(100, 100.0)] * 100, 4.0, 1.0, id="steady, slower than expected"),
        pytest.param(
            [RateSample(800, 100.0)] * 100, 4.0, 8.0, id="steady, faster: the prior fades"
        ),
        pytest.param([RateSample(0, 100.0)] * 100, 4.0, 0.04, id="nothing finished: above zero"),
    ],
)
def test_lower_bound_approaches_steady_rate(
    samples: list[RateSample], prior: float, bound: float
) -> None:
    assert Rate().fold(samples).lower_bound(prior) == pytest.approx(bound, rel=0.02)


@pytest.mark.parametrize(
    ("requests", "seconds", "minimum", "maximum"),
    [
        pytest.param(0, 10.0, 0.9, 1.5, id="nothing finished in the first ten seconds"),
        pytest.param(20, 10.0, 1.99, 2.0, id="the first ten seconds as expected"),
        pytest.param(10, 10.0, 1.0, 1.9, id="the first ten seconds at half"),
        pytest.param(40, 10.0, 1.0, 2.2, id="the first ten seconds at twice"),
        pytest.param(600, 600.0, 0.6, 1.0, id="ten minutes at half"),
    ],
)
def test_single_sample_moves_lower_bound_partly(
    requests: int, seconds: float, minimum: float, maximum: float
) -> None:
    assert minimum <= Rate().fold([RateSample(requests, seconds)]).lower_bound(2.0) <= maximum


def test_sample_counts_half_after_half_life() -> None:
    old = Rate().fold([RateSample(1000, 100.0)])
    new = old.fold([RateSample(0, HALF_LIFE)])
    assert new.lines == pytest.approx(500)


def test_lower_bound_falls_with_uncertainty() -> None:
    steady = Rate().fold([RateSample(100, 10.0)] * 40)
    wild = Rate().fold([RateSample(20, 10.0), RateSample(180, 10.0)] * 20)
    few = Rate().fold([RateSample(20, 10.0), RateSample(180, 10.0)])
    assert few.lower_bound(10.0) < wild.lower_bound(10.0) < steady.lower_bound(10.0)


def test_lower_bound_rarely_exceeds_true_rate() -> None:
    rng = random.Random(7)  # noqa: S311
    above = 0
    for _ in range(300):
        samples = [RateSample(round(max(0.0, rng.gauss(20.0, 6.0))), 10.0) for _ in range(60)]
        above += Rate().fold(samples).lower_bound(2.0) > 2.0
    assert above <= 300 * 0.09


@given(_samples, st.floats(0.01, 100.0))
def test_lower_bound_is_positive_and_at_most_mean_or_prior(
    samples: list[RateSample], prior: float
) -> None:
    rate = Rate().fold(samples)
    assert rate.mean is not None
    assert 0 < rate.lower_bound(prior) <= max(rate.mean, prior) + 1e-9


@given(_samples)
def test_samples_fold_one_by_one_as_together(samples: list[RateSample]) -> None:
    one_by_one = Rate()
    for sample in samples:
        one_by_one = one_by_one.fold([sample])
    assert one_by_one == Rate().fold(samples)


@pytest.mark.parametrize(
    ("ended", "retried", "attempts"),
    [
        pytest.param(0, 0, 1.0, id="nothing yet"),
        pytest.param(1800, 200, 1.1, id="some"),
        pytest.param(0, 200, 2.0, id="only retries"),
    ],
)
def test_retries_inflate_demand(ended: int, retried: int, attempts: float) -> None:
    assert attempts_per_line(ended, retried) == pytest.approx(attempts)

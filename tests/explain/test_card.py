"""The texts of the card on a batch's page."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from lowtide.batches.model import BatchStatus
from lowtide.batches.workload import Forecast
from lowtide.explain.model import Advice, Comparison, Explanation, Factor, Finding
from portal.components.explanation import card_of
from tests.batches.test_batches import EARLY, example

PAUSED = Finding(Factor.POOL_PAUSED, {"pool": "spot", "waiting": 1200})
EXPLANATION = Explanation(
    batch=example(BatchStatus.IN_PROGRESS),
    at=EARLY,
    limiting=PAUSED,
    contributing=(Finding(Factor.RETRIES, {"retries": 10, "ended": 90, "delayed": 0}),),
    forecast=Forecast(EARLY, EARLY + timedelta(hours=2), EARLY + timedelta(hours=3)),
    rate=2.5,
    input_token_rate=12_345.6,
    output_token_rate=331.0,
    waited=90.0,
    request_seconds=2.0,
    retry_share=0.1,
    advice=(Advice(Factor.POOL_PAUSED, PAUSED.numbers, EARLY + timedelta(hours=1)),),
    comparison=Comparison(2.0, 4.0, 7),
)


def test_card_names_factor_figures_and_advice() -> None:
    card = card_of(EXPLANATION)
    assert card.limiting == "The spot pool is paused; 1,200 requests wait for it"
    assert card.contributing == ("10 of 100 attempts failed and were repeated",)
    assert card.advice == ("Resume spot: 1 h sooner",)
    figures = dict(card.figures)
    assert figures["Rate"] == "2.5 requests/s, 12,000 input and 330 output tokens/s"
    assert figures["Time per request"] == "waited 1 min 30 s and ran 2 s on average"
    assert figures["Earlier runs"].endswith("the median of the last 7 runs is 4 (50% slower)")


def test_card_stays_the_same_within_a_minute() -> None:
    forecast = EXPLANATION.forecast
    assert forecast is not None
    assert forecast.likely is not None
    moved = replace(forecast, likely=forecast.likely + timedelta(microseconds=5))
    later = replace(EXPLANATION, at=EARLY + timedelta(seconds=2), forecast=moved)
    assert card_of(later) == card_of(EXPLANATION)


@pytest.mark.parametrize("rate", [None, 0.0])
def test_card_without_tokens_names_none(rate: float | None) -> None:
    card = card_of(replace(EXPLANATION, input_token_rate=rate, output_token_rate=rate))
    assert dict(card.figures)["Rate"] == "2.5 requests/s"


def test_unknown_end_is_said() -> None:
    stuck = replace(EXPLANATION, forecast=Forecast(), advice=EXPLANATION.advice)
    card = card_of(stuck)
    assert dict(card.figures)["Expected end"] == "Unknown: no workers"
    assert card.advice[0].startswith("Resume spot: then it ends at ")

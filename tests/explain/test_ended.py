"""What limited a batch that has ended, from its records."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lowtide.batches.model import Batch, BatchStatus, Outcomes
from lowtide.batches.workload import FleetCapacity, Workload
from lowtide.core.pools import Depth, Pool
from lowtide.explain.model import Factor, Facts, Mark, explain
from lowtide.explain.words import words
from lowtide.planning.demand import Capacity
from lowtide.planning.reasons import Bound, Reason, Risk
from tests.batches.test_batches import EARLY, example

START = EARLY - timedelta(seconds=1000)
FLEET = FleetCapacity(Capacity(1.0, 2, 60.0, 0.0, 10.0))
ENDED = replace(
    example(BatchStatus.COMPLETED, ended_at=EARLY),
    in_progress_at=START,
    finalizing_at=EARLY,
    total=500,
    outcomes=Outcomes(completed=500),
    input_tokens=50_000,
    output_tokens=10_000,
)
EXPIRED = replace(ENDED, status=BatchStatus.EXPIRED, outcomes=Outcomes(completed=400, expired=100))
BOUND = Bound(500, 100.0, 2, 1.0, 200)


def _facts(batch: Batch = ENDED, **changes: Any) -> Facts:
    facts = Facts(
        batch,
        Workload(EARLY),
        FLEET,
        dict.fromkeys(Pool, Depth(0, 0)),
        running_seconds=2000.0,
        first_start=START + timedelta(seconds=1),
    )
    return replace(facts, **changes)


@pytest.mark.parametrize(
    ("facts", "factor", "text"),
    [
        pytest.param(
            _facts(), Factor.POOL_BOUND, "mostly waited for a free spot worker", id="workers busy"
        ),
        pytest.param(
            _facts(running_seconds=500 * 900.0),
            Factor.ENGINE_SPEED,
            "at 900 s each",
            id="as fast as the engine",
        ),
        pytest.param(
            _facts(first_start=EARLY - timedelta(seconds=100)),
            Factor.QUEUE_AHEAD,
            "It waited 15 min",
            id="waited",
        ),
        pytest.param(
            _facts(running_seconds=3800.0, limit=4),
            Factor.TENANT_LIMIT,
            "limit of 4 running requests was in use",
            id="limit",
        ),
        pytest.param(
            _facts(replace(ENDED, retries=400)), Factor.RETRIES, "400 of 900", id="retries"
        ),
        pytest.param(
            _facts(replace(ENDED, interruptions=400)),
            Factor.INTERRUPTIONS,
            "400 interruptions: these requests ran again",
            id="interruptions",
        ),
        pytest.param(
            _facts(
                replace(EXPIRED, risk=Risk(Reason.DEADLINE_BOUND, BOUND, EARLY)),
            ),
            Factor.DEADLINE_BOUND,
            "2 dedicated workers at 1 requests/s each can finish 200",
            id="deadline",
        ),
        pytest.param(
            _facts(EXPIRED, marks=(Mark("at_risk", Reason.POOL_PAUSED, 500, EARLY),)),
            Factor.POOL_PAUSED,
            "The dedicated pool was paused",
            id="paused",
        ),
        pytest.param(
            _facts(EXPIRED, marks=(Mark("at_risk", Reason.NO_DEDICATED, 500, EARLY),)),
            Factor.NO_WORKERS,
            "No dedicated worker was available",
            id="no dedicated",
        ),
        pytest.param(
            _facts(replace(ENDED, status=BatchStatus.FAILED)),
            Factor.REJECTED,
            "rejected",
            id="file",
        ),
        pytest.param(
            _facts(replace(ENDED, status=BatchStatus.CANCELLED)),
            Factor.CANCELLED,
            "It was cancelled",
            id="cancelled",
        ),
    ],
)
def test_limit_of_ended_batch(facts: Facts, factor: Factor, text: str) -> None:
    explanation = explain(facts)
    assert explanation.limiting.factor is factor
    assert text in words(explanation.limiting.factor, explanation.limiting.numbers)
    assert explanation.forecast is None
    assert explanation.advice == ()


@pytest.mark.parametrize(
    ("facts", "rates"),
    [
        pytest.param(_facts(), (50.0, 10.0), id="ended, by its mean rate"),
        pytest.param(
            _facts(
                replace(ENDED, status=BatchStatus.IN_PROGRESS),
                depths={Pool.SPOT: Depth(90, 8), Pool.DEDICATED: Depth(0, 0)},
            ),
            (200.0, 40.0),
            id="running, 8 at 4 s each",
        ),
        pytest.param(
            _facts(replace(ENDED, status=BatchStatus.IN_PROGRESS)), (0.0, 0.0), id="none runs"
        ),
        pytest.param(
            _facts(replace(ENDED, outcomes=Outcomes(expired=500))), (None, None), id="no result"
        ),
    ],
)
def test_token_rates_are_those_of_a_mean_request(
    facts: Facts, rates: tuple[float | None, float | None]
) -> None:
    explanation = explain(facts)
    assert (explanation.input_token_rate, explanation.output_token_rate) == pytest.approx(rates)


def test_ended_batch_has_mean_rate_and_comparison() -> None:
    explanation = explain(_facts(earlier=(1.0, 4.0, 2.0)))
    assert explanation.rate == pytest.approx(0.5)
    assert explanation.comparison is not None
    assert (explanation.comparison.usual, explanation.comparison.ratio) == (2.0, 0.25)
    assert explanation.first_wait == 1.0

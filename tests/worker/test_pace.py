"""How fast a worker is when it is full."""

from __future__ import annotations

import pytest

from lowtide.planning.demand import RateSample
from lowtide.worker.lease import Utilization

TOOK, ENDED, GAVE_BACK = range(3)


@pytest.mark.parametrize(
    ("steps", "total"),
    [
        pytest.param([], RateSample(0, 0.0), id="nothing"),
        pytest.param([(0, TOOK, 3), (5, ENDED, 3)], RateSample(0, 0.0), id="never full"),
        pytest.param(
            [(0, TOOK, 9), (5, ENDED, 4)], RateSample(0, 0.0), id="the first take their time"
        ),
        pytest.param(
            [(0, TOOK, 9), (5, ENDED, 4), (8, ENDED, 1), (9, ENDED, 1)],
            RateSample(2, 4.0),
            id="full",
        ),
        pytest.param(
            [(0, TOOK, 9), (5, ENDED, 4), (6, TOOK, 4), (10, ENDED, 4), (15, ENDED, 4)],
            RateSample(8, 10.0),
            id="together each time",
        ),
        pytest.param(
            [(0, TOOK, 8), (1, ENDED, 4), (5, ENDED, 1), (9, TOOK, 1), (10, ENDED, 1)],
            RateSample(2, 5.0),
            id="at times",
        ),
        pytest.param(
            [(0, TOOK, 4), (1, ENDED, 4), (5, TOOK, 8), (9, ENDED, 4), (10, ENDED, 1)],
            RateSample(1, 1.0),
            id="it was empty",
        ),
        pytest.param(
            [(0, TOOK, 9), (5, ENDED, 4), (8, GAVE_BACK, 1), (9, ENDED, 1)],
            RateSample(1, 4.0),
            id="given back",
        ),
        pytest.param(
            [(0, TOOK, 9), (5, GAVE_BACK, 5), (8, ENDED, 4)],
            RateSample(0, 0.0),
            id="given back before the first end",
        ),
    ],
)
def test_only_time_at_full_utilization_counts(steps: list[tuple[float, int, int]], total: RateSample) -> None:
    now = 0.0
    utilization = Utilization(4, lambda: now)
    for at, what, lines in steps:
        now = at
        if what == TOOK:
            utilization.took(lines)
        else:
            utilization.left(lines, ran=lines if what == ENDED else 0)
    assert utilization.total() == total


def test_restart_resets_total() -> None:
    now = 0.0
    utilization = Utilization(2, lambda: now)
    utilization.took(9)
    utilization.left(2, ran=2)
    now = 3.0
    assert utilization.total() == RateSample(0, 3.0)
    utilization.restart()
    now = 5.0
    assert utilization.total() == RateSample(0, 0.0)
    utilization.left(5, ran=5)
    utilization.took(1)
    now = 9.0
    assert utilization.total() == RateSample(0, 0.0)


def test_running_requests_share_time_of_their_worker() -> None:
    now = 0.0
    utilization = Utilization(9, lambda: now)
    now = 10.0
    first = utilization.took(2)
    now = 14.0
    second = utilization.took(2)
    now = 18.0
    end = utilization.left(3, ran=3)
    parts = [end - began for began in (first, first, second)]
    now = 20.0
    parts.append(utilization.left(1, ran=1) - second)
    # Four seconds for two, four for four, two for one: ten seconds in which there was anything.
    assert parts == [3.0, 3.0, 1.0, 3.0]
    assert sum(parts) == 10.0
    now = 50.0
    assert utilization.took(1) == 5.0

"""Utilization: the rate of a worker while it is full."""

from __future__ import annotations

import pytest

from lowtide.planning.demand import RateSample
from lowtide.worker.lease import Utilization

CLAIMED, FINISHED, RELEASED = range(3)


@pytest.mark.parametrize(
    ("steps", "total"),
    [
        pytest.param([], RateSample(0, 0.0), id="nothing"),
        pytest.param([(0, CLAIMED, 3), (5, FINISHED, 3)], RateSample(0, 0.0), id="never full"),
        pytest.param(
            [(0, CLAIMED, 9), (5, FINISHED, 4)], RateSample(0, 0.0), id="full until the first end"
        ),
        pytest.param(
            [(0, CLAIMED, 9), (5, FINISHED, 4), (8, FINISHED, 1), (9, FINISHED, 1)],
            RateSample(2, 4.0),
            id="full after the first end",
        ),
        pytest.param(
            [
                (0, CLAIMED, 9),
                (5, FINISHED, 4),
                (6, CLAIMED, 4),
                (10, FINISHED, 4),
                (15, FINISHED, 4),
            ],
            RateSample(8, 10.0),
            id="all at once",
        ),
        pytest.param(
            [
                (0, CLAIMED, 8),
                (1, FINISHED, 4),
                (5, FINISHED, 1),
                (9, CLAIMED, 1),
                (10, FINISHED, 1),
            ],
            RateSample(2, 5.0),
            id="full at times",
        ),
        pytest.param(
            [
                (0, CLAIMED, 4),
                (1, FINISHED, 4),
                (5, CLAIMED, 8),
                (9, FINISHED, 4),
                (10, FINISHED, 1),
            ],
            RateSample(1, 1.0),
            id="empty before",
        ),
        pytest.param(
            [(0, CLAIMED, 9), (5, FINISHED, 4), (8, RELEASED, 1), (9, FINISHED, 1)],
            RateSample(1, 4.0),
            id="released",
        ),
        pytest.param(
            [(0, CLAIMED, 9), (5, RELEASED, 5), (8, FINISHED, 4)],
            RateSample(0, 0.0),
            id="released before the first end",
        ),
    ],
)
def test_only_time_at_full_utilization_counts(
    steps: list[tuple[float, int, int]], total: RateSample
) -> None:
    now = 0.0
    utilization = Utilization(4, lambda: now)
    for at, event, requests in steps:
        now = at
        if event == CLAIMED:
            utilization.took(requests)
        else:
            utilization.left(requests, ran=requests if event == FINISHED else 0)
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
    shares = [end - start for start in (first, first, second)]
    now = 20.0
    shares.append(utilization.left(1, ran=1) - second)
    # Two requests share four seconds, four share four, one has two: ten busy seconds in all.
    assert shares == [3.0, 3.0, 1.0, 3.0]
    assert sum(shares) == 10.0
    now = 50.0
    assert utilization.took(1) == 5.0

"""The range of the expected end holds in simulated runs, and is narrow enough to be useful."""

from __future__ import annotations

import math
from statistics import median

import pytest

from tests.explain.simulator import moments

RUNS = 200
MAX_WIDTH = 1.1
"""A batch that has an hour to go ends half an hour sooner or later, in nine of ten runs."""


@pytest.mark.parametrize("prioritized", [False, True])
def test_range_holds_in_nine_of_ten_runs(*, prioritized: bool) -> None:
    held, widths, errors = 0, [], []
    runs = list(moments(range(RUNS), prioritized=prioritized))
    for seed, moment, fleet, left in runs:
        forecast = moment.workload.forecast(moment.batch, fleet)
        assert forecast is not None, seed
        ends = [
            math.inf if end is None else (end - moment.workload.at).total_seconds()
            for end in (forecast.low, forecast.likely, forecast.high)
        ]
        low, likely, high = ends
        assert low <= likely <= high, seed
        held += low <= left <= high
        widths.append((high - low) / max(left, 1.0))
        errors.append(abs(likely - left) / max(left, 1.0))
    share, width = held / len(runs), median(widths)
    print(
        f"{len(runs)} runs: the true end is within the range in {share:.1%}; the range is "
        f"{width:.2f} of the remaining time (median), the error {median(errors):.2f}"
    )
    assert len(runs) >= 0.98 * RUNS
    assert share >= 0.9
    assert width < MAX_WIDTH

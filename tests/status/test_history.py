"""Points of the history, and its gaps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lowtide.status.history import HistoryPoint, HistoryRange, unbroken

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("minutes", "runs"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([0], [[0]], id="one"),
        pytest.param([0, 1, 2], [[0, 1, 2]], id="no gap"),
        pytest.param([0, 1, 3], [[0, 1], [3]], id="a minute is missing"),
        pytest.param([0, 60, 61, 200], [[0], [60, 61], [200]], id="hours are missing"),
    ],
)
def test_runs_end_at_gaps(minutes: list[int], runs: list[list[int]]) -> None:
    points = [HistoryPoint(NOW + timedelta(minutes=minute), {}) for minute in minutes]
    found_runs = unbroken(points, timedelta(minutes=1))
    assert [[int((p.at - NOW).total_seconds()) // 60 for p in run] for run in found_runs] == runs


@pytest.mark.parametrize("range_", list(HistoryRange))
def test_range_has_at_most_300_points_of_whole_minutes(range_: HistoryRange) -> None:
    assert range_.span / range_.step <= 300
    assert range_.step % timedelta(minutes=1) == range_.span % range_.bar == timedelta()

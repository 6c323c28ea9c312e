"""Expected completion of a batch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lowtide.batches.forecast import PoolWorkers, expected_completion

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("own", "ahead", "workers", "seconds"),
    [
        pytest.param(100, 0, [PoolWorkers(2, 5.0)], 10, id="one pool"),
        pytest.param(100, 0, [PoolWorkers(2, 5.0), PoolWorkers(1, 10.0)], 5, id="both pools"),
        pytest.param(100, 300, [PoolWorkers(4, 1.0)], 100, id="after others"),
        pytest.param(0, 300, [PoolWorkers(4, 1.0)], 0, id="no requests left"),
        pytest.param(1, 0, [], None, id="no workers"),
        pytest.param(1, 0, [PoolWorkers(0, 5.0)], None, id="zero workers"),
        pytest.param(10**9, 0, [PoolWorkers(1, 1e-9)], None, id="beyond the calendar"),
    ],
)
def test_expected_completion_divides_work_by_speed(
    own: int, ahead: int, workers: list[PoolWorkers], seconds: float | None
) -> None:
    expected = None if seconds is None else NOW + timedelta(seconds=seconds)
    assert expected_completion(own, ahead, workers, NOW) == expected


def test_retries_delay_completion() -> None:
    assert expected_completion(100, 0, [PoolWorkers(1, 1.0)], NOW, attempts=1.5) == NOW + timedelta(
        seconds=150
    )

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lowtide.local.broker import next_tick

START = datetime(2026, 1, 31, 23, 59, 55, tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("*/10 * * * * *", datetime(2026, 2, 1, 0, 0, 0, tzinfo=UTC)),
        ("*/2 * * * * *", datetime(2026, 1, 31, 23, 59, 56, tzinfo=UTC)),
        ("* * * * *", datetime(2026, 2, 1, 0, 0, 0, tzinfo=UTC)),
        ("30 4 * * *", datetime(2026, 2, 1, 4, 30, 0, tzinfo=UTC)),
    ],
    ids=["ten-seconds", "two-seconds", "each-minute", "daily"],
)
def test_next_tick_follows_schedule(schedule: str, expected: datetime) -> None:
    assert next_tick(schedule, START) == expected

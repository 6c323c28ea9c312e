"""Formats of numbers and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from portal.formats import absolute, ago, counted, duration, milliseconds, number, zone_named

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1319, "1,319"),
        (9_999_999, "9,999,999"),
        (12_345_678, "12.3 M"),
        (999_949_999, "999.9 M"),
        (1_234_000_000, "1.2 G"),
    ],
)
def test_numbers_are_grouped_and_abbreviated(value: int, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (90000, "1 d")],
)
def test_durations_are_rounded_down(seconds: float, shown: str) -> None:
    assert duration(timedelta(seconds=seconds)) == shown


def test_ages_are_relative_to_now() -> None:
    assert ago(NOW, NOW - timedelta(seconds=3)) == "just now", "clocks may differ slightly"
    assert ago(NOW - timedelta(seconds=59), NOW) == "just now"
    assert ago(NOW - timedelta(minutes=3), NOW) == "3 min ago"


def test_counts_latencies_and_times_are_formatted() -> None:
    assert [counted(n, "worker") for n in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]
    assert [milliseconds(s) for s in (0.0004, 0.0123)] == ["under 1 ms", "12 ms"]
    assert absolute(NOW) == "2026-01-02 03:04:05 UTC"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param("Europe/Berlin", "2026-01-02 04:04:05 CET", id="known"),
        pytest.param("", "2026-01-02 03:04:05 UTC", id="not given"),
        pytest.param("Mars/Olympus", "2026-01-02 03:04:05 UTC", id="unknown"),
        pytest.param("../../etc/passwd", "2026-01-02 03:04:05 UTC", id="path"),
        pytest.param("Europe", "2026-01-02 03:04:05 UTC", id="directory"),
    ],
)
def test_time_zone_is_found_by_name_or_is_utc(name: str, shown: str) -> None:
    assert f"{NOW.astimezone(zone_named(name)):%Y-%m-%d %H:%M:%S %Z}" == shown

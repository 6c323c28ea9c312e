"""Formats of numbers and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from portal.formats import (
    absolute,
    ago,
    counted,
    duration,
    hint,
    milliseconds,
    number,
    rough,
    utc,
    zone_named,
)

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
    [
        (-5, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3599.9, "59 min 59 s"),
        (3659, "1 h"),
        (7200, "2 h"),
        (90000, "1 d 1 h"),
        (86400 * 40 + 3599, "40 d"),
    ],
)
def test_durations_have_two_units_and_are_rounded_down(seconds: float, shown: str) -> None:
    assert duration(timedelta(seconds=seconds)) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "under 1 min"), (59.9, "under 1 min"), (200, "3 min"), (7199, "1 h"), (90000, "1 d")],
)
def test_rough_durations_have_one_unit(seconds: float, shown: str) -> None:
    assert rough(timedelta(seconds=seconds)) == shown


def test_ages_are_relative_to_now() -> None:
    assert ago(NOW, NOW - timedelta(seconds=3)) == "just now", "clocks may differ slightly"
    assert ago(NOW - timedelta(seconds=59), NOW) == "just now"
    assert ago(NOW - timedelta(minutes=3, seconds=20), NOW) == "3 min ago"


def test_counts_latencies_and_times_are_formatted() -> None:
    assert [counted(n, "worker") for n in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]
    assert [milliseconds(s) for s in (0.0004, 0.0123)] == ["under 1 ms", "12 ms"]
    assert absolute(NOW) == "2 Jan 2026, 03:04:05"


def test_tooltips_of_times_have_utc() -> None:
    assert utc(NOW.astimezone(zone_named("Asia/Tokyo"))) == "2 Jan 2026, 03:04:05 UTC"
    assert hint(NOW) == "2 Jan 2026, 03:04:05 · 2 Jan 2026, 03:04:05 UTC"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param("Europe/Berlin", "2 Jan 2026, 04:04:05", id="known"),
        pytest.param("", "2 Jan 2026, 03:04:05", id="not given"),
        pytest.param("Mars/Olympus", "2 Jan 2026, 03:04:05", id="unknown"),
        pytest.param("../../etc/passwd", "2 Jan 2026, 03:04:05", id="path"),
        pytest.param("Europe", "2 Jan 2026, 03:04:05", id="directory"),
    ],
)
def test_time_zone_is_found_by_name_or_is_utc(name: str, shown: str) -> None:
    assert absolute(NOW, zone_named(name)) == shown

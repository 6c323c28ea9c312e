"""Durations of settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.durations import format_seconds, parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30d", 2_592_000),
        ("1h30m", 5400),
        ("10m", 600),
        ("45s", 45),
        ("0.25s", 0.25),
        ("250ms", 0.25),
        ("1d2h3m4s5ms", 93_784.005),
        ("0s", 0),
        ("30", 30),
        ("0.25", 0.25),
        ("-1", -1),
    ],
)
def test_duration_is_parsed(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "d", "10 m", "10min", "10M", "30m1h", "1h1h", "1.5h", "-1h", "+1h", "1w"),
        *("inf", "nan", "\u0662h", "1e3s", "10m\n", "1,5s"),
    ],
)
def test_other_text_is_refused(text: str) -> None:
    assert parse_seconds(text) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2_592_000, "30d"), (5400, "1h30m"), (0.25, "250ms"), (90.5, "1m30s500ms"), (0, "0s")],
)
def test_duration_is_formatted_exactly(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.integers(0, 10**12))
def test_formatted_duration_is_parsed_back(milliseconds: int) -> None:
    assert parse_seconds(format_seconds(milliseconds / 1000)) == milliseconds / 1000

"""Completion windows."""

from __future__ import annotations

from datetime import timedelta

import pytest

from lowtide.core.durations import format_window, parse_window
from lowtide.core.errors import InvalidRequest

MINUTE, WEEK = timedelta(minutes=1), timedelta(days=7)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        pytest.param("24h", timedelta(days=1), id="OpenAI's"),
        pytest.param("1m", MINUTE, id="shortest"),
        pytest.param("7d", WEEK, id="longest"),
        pytest.param("168h", WEEK, id="longest in hours"),
        pytest.param("90m", timedelta(minutes=90), id="minutes"),
    ],
)
def test_window_within_bounds_is_parsed(text: str, length: timedelta) -> None:
    assert parse_window(text, shortest=MINUTE, longest=WEEK) == length


@pytest.mark.parametrize(
    "text",
    [
        *("", "24", "h", "0h", "01h", "-1h", "+1h", "1.5h", "24H", "24 h", " 24h", "24h\n", "59s"),
        *("8d", "169h", "99999d", "999999h", "1h1m", "\u0662h", "1w", "24h\x00"),
    ],
)
def test_invalid_window_is_rejected(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_window(text, shortest=MINUTE, longest=WEEK)
    assert caught.value.param == "completion_window"
    assert caught.value.code == "invalid_completion_window"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(60, "1m"), (3600, "1h"), (86400, "1d"), (604800, "7d"), (5400, "90m"), (90, "90s")],
)
def test_window_is_formatted_in_largest_whole_unit(seconds: int, text: str) -> None:
    assert format_window(timedelta(seconds=seconds)) == text

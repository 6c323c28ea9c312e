"""Completion windows: `24h` as OpenAI has it, and any `Nm`, `Nh` or `Nd` within bounds."""

from __future__ import annotations

import re
from datetime import timedelta

from lowtide.domain.errors import InvalidRequest

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_PATTERN = re.compile(r"([1-9][0-9]{0,4})([mhd])")


def parse_window(text: str, *, shortest: timedelta, longest: timedelta) -> timedelta:
    """Return the length of a completion window.

    Raises InvalidRequest when `text` is not `Nm`, `Nh` or `Nd`, or lies outside the bounds.
    """
    window = parse_span(text)
    if window is None:
        raise InvalidRequest(
            f"Invalid completion_window {text!r}: use a number and a unit, like 30m, 24h or 7d.",
            param="completion_window",
            code="invalid_completion_window",
        )
    if not shortest <= window <= longest:
        raise InvalidRequest(
            f"completion_window {text} is outside this server's bounds: "
            f"it takes {format_window(shortest)} to {format_window(longest)}.",
            param="completion_window",
            code="invalid_completion_window",
        )
    return window


def parse_span(text: str) -> timedelta | None:
    """Return the length of `Nm`, `Nh` or `Nd`, or None when `text` is not one."""
    match = _PATTERN.fullmatch(text)
    return None if match is None else timedelta(**{_UNITS[match[2]]: int(match[1])})


def format_window(window: timedelta) -> str:
    """Return a window in its largest whole unit."""
    seconds = int(window.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"

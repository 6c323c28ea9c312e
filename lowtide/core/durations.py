"""Completion windows (`24h`), durations of settings (`1h30m`) and as text, and retry delays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from math import isfinite
from typing import TYPE_CHECKING, Protocol

from lowtide.core.errors import InvalidRequest

if TYPE_CHECKING:
    from random import Random


_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_PATTERN = re.compile(r"([1-9][0-9]{0,4})([mhd])")


def parse_window(text: str, *, shortest: timedelta, longest: timedelta) -> timedelta:
    """Parse a completion window.

    Raises InvalidRequest if `text` is not `Nm`, `Nh` or `Nd`, or is out of bounds.
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
            f"completion_window {text} is out of range: "
            f"use {format_window(shortest)} to {format_window(longest)}.",
            param="completion_window",
            code="invalid_completion_window",
        )
    return window


def parse_span(text: str) -> timedelta | None:
    """Parse `Nm`, `Nh` or `Nd`; return None for any other text."""
    match = _PATTERN.fullmatch(text)
    return None if match is None else timedelta(**{_UNITS[match[2]]: int(match[1])})


def format_window(window: timedelta) -> str:
    """Format a window in the largest unit that divides it."""
    seconds = int(window.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


_SETTING = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?", re.ASCII
)
_SETTING_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


def parse_seconds(text: str) -> float | None:
    """Parse seconds or a duration such as `30d`, `1h30m`, `45s` or `250ms`; None for other text.

    Units follow each other from days to milliseconds, each at most once; only seconds may have
    decimals.
    """
    try:
        seconds = float(text)
    except ValueError:
        match = _SETTING.fullmatch(text)
        if match is None or not text:
            return None
        pairs = zip(match.groups("0"), _SETTING_UNITS, strict=True)
        return sum(float(number) * length for number, (_, length) in pairs) / 1000
    return seconds if isfinite(seconds) else None


def format_seconds(seconds: float) -> str:
    """Format a duration for `parse_seconds`, exact to the millisecond: `400d`, `1h30m`, `250ms`."""
    remainder, parts = round(seconds * 1000), []
    for unit, length in _SETTING_UNITS:
        count, remainder = divmod(remainder, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


_SPAN_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(span: timedelta) -> str:
    """Format a span in its two largest units, rounded down: `3 min 20 s`, `2 h`."""
    seconds = max(int(span.total_seconds()), 0)
    for place, (unit, length) in enumerate(_SPAN_UNITS[:-1]):
        if seconds >= length:
            count, rest = divmod(seconds, length)
            next_unit, next_length = _SPAN_UNITS[place + 1]
            next_count = rest // next_length
            return f"{count} {unit} {next_count} {next_unit}" if next_count else f"{count} {unit}"
    return f"{seconds} s"


class Backoff(Protocol):
    """A strategy for the delays between empty polls."""

    def next_delay(self) -> float:
        """Return the delay in seconds, and increase the next one."""
        ...

    def reset(self) -> None:
        """Reset the delay after a poll that found work."""
        ...


@dataclass(slots=True)
class ExponentialBackoff:
    """Delays in seconds that grow from `initial` to `cap`; the original's 250 ms to 10 s."""

    initial: float = 0.25
    cap: float = 10.0
    factor: float = 2.0
    _next: float = 0.0

    def next_delay(self) -> float:
        """Return the delay in seconds, and increase the next one."""
        delay = self._next or self.initial
        self._next = min(self.cap, delay * self.factor)
        return delay

    def reset(self) -> None:
        """Reset the delay after a poll that found work."""
        self._next = 0.0


def retry_delay(attempt: int, rng: Random, *, base: float, cap: float) -> float:
    """Return the delay in seconds after attempt `attempt`, counted from 0.

    Exponential backoff with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter",
    2015) on top of a floor: `floor + uniform(0, floor)` with `floor = base * 2^attempt`. Full jitter
    alone could use up all attempts during a brief engine failure: with the floor and a base of 8 s,
    five attempts are at least 8 + 16 + 32 + 64 s apart, two minutes in total.
    """
    floor = base * 2.0 ** min(attempt, 60)
    return min(cap, floor + rng.uniform(0.0, floor))


def requeue_delay(waited: float, rng: Random, *, cap: float) -> float:
    """Return the delay in seconds before a request that was not at fault is retried.

    Its max grows with `waited`, the seconds that the request has waited so far, from one second to
    `cap`: repeated retries stay cheap, and no retry count is kept.
    """
    longest = min(cap, max(1.0, waited / 4))
    return rng.uniform(longest / 2, longest)

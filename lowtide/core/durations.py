"""Durations: completion windows (`24h`), durations in words, and retry delays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from lowtide.core.errors import InvalidRequest

if TYPE_CHECKING:
    from random import Random


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


_SPAN_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


def duration(span: timedelta) -> str:
    """Return a span in its largest unit, rounded down; under a minute in seconds."""
    seconds = max(int(span.total_seconds()), 0)
    for unit, length in _SPAN_UNITS:
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


class Backoff(Protocol):
    """A strategy for waiting between empty polls."""

    def next_delay(self) -> float:
        """Return the seconds to wait now, and lengthen the next wait."""
        ...

    def reset(self) -> None:
        """Start over: there was work."""
        ...


@dataclass(slots=True)
class ExponentialBackoff:
    """Wait `initial` seconds, doubling up to `cap`; the original's 250 ms to 10 s."""

    initial: float = 0.25
    cap: float = 10.0
    factor: float = 2.0
    _next: float = 0.0

    def next_delay(self) -> float:
        """Return the seconds to wait now, and lengthen the next wait."""
        delay = self._next or self.initial
        self._next = min(self.cap, delay * self.factor)
        return delay

    def reset(self) -> None:
        """Start over: there was work."""
        self._next = 0.0


def retry_delay(attempt: int, rng: Random, *, base: float, cap: float) -> float:
    """Return the seconds before attempt number `attempt` + 1, counted from 0.

    Exponential backoff with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter",
    2015) on top of a floor: `floor + uniform(0, floor)` with `floor = base * 2^attempt`. Full jitter
    alone may end a request within seconds that only met a wobble of its engine: with a base of 8 s,
    five attempts are at least 8 + 16 + 32 + 64 s apart, together two minutes.
    """
    floor = base * 2.0 ** min(attempt, 60)
    return min(cap, floor + rng.uniform(0.0, floor))


def requeue_delay(waited: float, rng: Random, *, cap: float) -> float:
    """Return the seconds until a request that has `waited` so far, and was not at fault, is tried.

    It grows with what it waited, from one second to the cap: however often it comes back, it costs
    little, and no count of its tries is kept.
    """
    longest = min(cap, max(1.0, waited / 4))
    return rng.uniform(longest / 2, longest)

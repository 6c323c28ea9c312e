"""Tests of what is counted by day, in UTC."""

from __future__ import annotations

import time

_DAY = 86_400


def within_a_day(seconds: float) -> None:
    """Wait until midnight if the day has fewer seconds left than the caller needs."""
    left = _DAY - time.time() % _DAY
    if left < seconds:
        time.sleep(left + 0.1)

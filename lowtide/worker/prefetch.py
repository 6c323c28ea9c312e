"""Prefetch: the requests that wait in a worker, so that its engine never waits for a claim."""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_MIN_WINDOW: Final = 0.25
_MAX_WINDOW: Final = 5.0
"""Bounds of a window in seconds: below the first, claims would be small and many."""
_HALF_LIFE: Final = 30.0
"""Seconds after which the most requests of a window count half."""
_SMOOTHING: Final = 0.25
MAX_CLAIM: Final = 4000
"""Max requests of a claim, and of the prefetch: more would not make a request cheaper."""


def refill_at(capacity: int, prefetch: int) -> int:
    """Return the free places at which to claim: the other half of the prefetch is still ready."""
    return max(1, min(capacity // 4, prefetch // 2))


class Prefetch:
    """The number of requests that a worker claims beyond those in flight.

    A fixed number, or twice the most requests that ended within a window: a claim begins when half
    of them are left, and these last until it is there. A window is twice as long as a claim and the
    reading of its inputs take.
    """

    def __init__(self, fixed: int | None, timer: Callable[[], float] = monotonic) -> None:
        self._fixed = fixed
        self._timer = timer
        self._window = _MIN_WINDOW
        self._claim_seconds = self._load_seconds = 0.0
        self._since = timer()
        self._count = 0
        self._peak: float | None = None

    def size(self, concurrency: int) -> int:
        """Return the number for an engine of this concurrency; as many, until it is measured."""
        if self._fixed is not None:
            return self._fixed
        if self._peak is None:
            return min(concurrency, MAX_CLAIM)
        peak = max(math.ceil(self._peak), self._count)
        return min(max(math.ceil(concurrency / 8), 2 * peak), MAX_CLAIM)

    def claimed(self, seconds: float) -> None:
        """Record the time of a claim."""
        self._claim_seconds += _SMOOTHING * (seconds - self._claim_seconds)
        self._set_window()

    def loaded(self, seconds: float) -> None:
        """Record the time from a claim until its requests were ready."""
        self._load_seconds += _SMOOTHING * (seconds - self._load_seconds)
        self._set_window()

    def ended(self, requests: int) -> None:
        """Count requests that left the engine."""
        now = self._timer()
        elapsed = now - self._since
        if elapsed >= self._window:
            peak = (self._peak or 0.0) * 0.5 ** (elapsed / _HALF_LIFE)
            self._peak = max(peak, float(self._count))
            self._since, self._count = now, 0
        self._count += requests

    def _set_window(self) -> None:
        seconds = 2 * (self._claim_seconds + self._load_seconds)
        self._window = min(max(seconds, _MIN_WINDOW), _MAX_WINDOW)

"""Delays: how long an idle worker waits, and when a failed line is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from random import Random


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

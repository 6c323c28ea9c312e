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


def retry_delay(
    attempt: int, rng: Random, *, base: float, cap: float, retry_after: float | None = None
) -> float:
    """Return the seconds before attempt number `attempt` + 1.

    Exponential backoff with full jitter, `uniform(0, min(cap, base * 2^attempt))` (AWS
    Architecture Blog, "Exponential Backoff And Jitter", 2015). A longer Retry-After wins.
    """
    ceiling = min(cap, base * 2.0 ** min(attempt, 60))
    return max(rng.uniform(0.0, ceiling), retry_after or 0.0)

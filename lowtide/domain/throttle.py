"""How many requests a busy engine gets at a time: additive increase, multiplicative decrease."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

FIRST_PAUSE: Final = 1.0
"""Seconds of the first pause where the engine does not say how long; each further one is twice it."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """One worker's limit of `most` requests in flight; times in seconds of one monotonic clock.

    A round is everything that was in flight when the limit was cut: it is cut once for all of it.
    """

    most: int
    limit: float
    paused_until: float = -math.inf
    rounds: int = 0

    @classmethod
    def of(cls, most: int) -> Throttle:
        """Return a throttle that lets `most` through."""
        return cls(most, float(most))

    def in_flight(self, now: float) -> int:
        """Return how many requests may be in flight now; none during a pause."""
        return 0 if now < self.paused_until else max(1, int(self.limit))

    def pressed(self, now: float, rng: Random, *, cap: float, wait: float | None) -> Throttle:
        """Return the throttle after back-pressure; `wait` is the engine's own, `cap` bounds it."""
        if now < self.paused_until:
            return replace(self, paused_until=max(self.paused_until, now + min(wait or 0.0, cap)))
        ceiling = min(cap, FIRST_PAUSE * 2.0 ** min(self.rounds, 30))
        pause = min(cap, wait) if wait is not None else rng.uniform(ceiling / 2, ceiling)
        return replace(
            self,
            limit=max(1.0, self.limit / 2),
            paused_until=now + pause,
            rounds=self.rounds + 1,
        )

    def succeeded(self, requests: int) -> Throttle:
        """Return the throttle after successes: one more in flight for each full round of them."""
        if self.limit >= self.most and not self.rounds:
            return self
        limit = min(float(self.most), self.limit + requests / self.limit)
        return replace(self, limit=limit, rounds=0)

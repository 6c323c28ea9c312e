"""How fast replicas are, measured: exponentially weighted, with a lower confidence bound.

A sample is what one worker ended while it was full. Weights fall with the seconds measured since, not
with the clock: a rate survives a pool that was scaled to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HALF_LIFE = 1800.0
"""Measured seconds after which a sample counts half."""
PRIOR_SECONDS = 120.0
"""How many measured seconds the configured rate counts as; half of that after as many seconds."""
CONFIDENCE = 1.645
"""Standard errors below the mean: one rate in twenty is lower than what is counted on."""
PRIOR_LINES = 200.0
"""How many ended lines the assumption that none is retried counts as."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Lines that a worker ended in `seconds` during which it was full."""

    lines: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Weighted sums over samples of n lines in s seconds.

    `seconds` of s, `lines` of n, `squares` of n^2/s, and `weights` of s^2 with squared weights.
    """

    seconds: float = 0.0
    lines: float = 0.0
    squares: float = 0.0
    weights: float = 0.0

    def fold(self, samples: Iterable[Sample]) -> Rate:
        """Return the rate with more samples, oldest first; those without time are skipped."""
        seconds, lines, squares, weights = self.seconds, self.lines, self.squares, self.weights
        for sample in samples:
            if sample.seconds <= 0:
                continue
            fade = math.exp2(-sample.seconds / HALF_LIFE)
            seconds = seconds * fade + sample.seconds
            lines = lines * fade + sample.lines
            squares = squares * fade + sample.lines**2 / sample.seconds
            weights = weights * fade**2 + sample.seconds**2
        return Rate(seconds, lines, squares, weights)

    @property
    def mean(self) -> float | None:
        """Lines a second; None until there is data."""
        return self.lines / self.seconds if self.seconds > 0 else None

    def lower_bound(self, prior: float) -> float:
        """Return the lines a second to count on: `prior` until there is data.

        The prior is one more sample, which fades. The bound is the mean less CONFIDENCE standard
        errors of samples weighted by their seconds, whose number is Kish's effective one. Never
        under a tenth of the mean or a hundredth of the prior: a bound of nothing would promise
        nothing, for ever.
        """
        if self.seconds <= 0:
            return prior
        weight = PRIOR_SECONDS * math.exp2(-self.seconds / PRIOR_SECONDS)
        seconds = self.seconds + weight
        mean = (self.lines + prior * weight) / seconds
        variance = max(0.0, (self.squares + prior**2 * weight) / seconds - mean**2)
        effective = seconds**2 / (self.weights + weight**2)
        bound = mean - CONFIDENCE * math.sqrt(variance / effective)
        return max(bound, mean / 10, prior / 100)


def attempts_per_line(ended: int, retried: int) -> float:
    """Return how often a line is run on average: retries inflate demand by the observed rate."""
    return 1 + max(retried, 0) / (max(ended, 0) + PRIOR_LINES)

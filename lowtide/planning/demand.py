"""Demand against capacity: what dedicated workers can promise, and the rates measured of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from lowtide.core.pools import Depth


@dataclass(frozen=True, slots=True)
class Capacity:
    """What dedicated workers can do. Rates in lines per second a replica, times in seconds.

    `tick` is the longest time between two looks of the scheduler. `in_flight` lines are under way
    in a busy replica at a time: half done, they count as open. `attempts` is how often a line is
    run on average until it ends.
    """

    rate: float
    replicas: int
    cold_start: float
    margin: float
    tick: float
    in_flight: int = 1
    attempts: float = 1.0

    @property
    def line_rate(self) -> float:
        """Lines a second that a replica ends, retries included."""
        return self.rate / self.attempts

    @property
    def speed(self) -> float:
        """Lines a second of all replicas."""
        return self.line_rate * self.replicas

    @property
    def lost(self) -> float:
        """Seconds before a deadline that are not counted on: the margin and one line's time."""
        return self.margin + (self.in_flight / self.rate if self.rate > 0 else 0.0)


@dataclass(frozen=True, slots=True)
class Demand:
    """Lines without a result, and when they are due."""

    deadline: datetime
    lines: int


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


def desired_replicas(rows: int, rows_per_replica: int, *, most: int, least: int = 0) -> int:
    """Return ceil(rows / rows_per_replica), clamped to `least`..`most`."""
    return max(least, min(most, -(-rows // rows_per_replica)))


def scaled_replicas(
    depth: Depth,
    rows_per_replica: int,
    *,
    most: int,
    planned: int | None,
    paused: bool,
    stranded: int = 0,
) -> int:
    """Return the replicas that KEDA is told of: no more than `planned`, if anybody plans the pool.

    What is held in a pool keeps one replica there though the plan counts on none: lines that stay on
    dedicated, and what still runs. Nothing that waits in a paused pool asks for any. `stranded` is
    how many workers the pool has where all their engines are away: it gets no more of them.
    """
    if paused:
        return desired_replicas(depth.running, rows_per_replica, most=most)
    if planned is not None:
        most = min(most, max(planned, 1))
    if stranded:
        most = min(most, stranded)
    return desired_replicas(depth.queued + depth.running, rows_per_replica, most=most)

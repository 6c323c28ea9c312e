"""Demand against capacity: the promises of dedicated workers, and their measured rates."""

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
    """The capacity of dedicated workers; times in seconds.

    `rate` is in requests per second per replica. `tick` is the max time between two ticks of the
    scheduler. A busy replica runs `in_flight` requests at a time: half done, they count as open.
    If it `searches` for that number, the one found last replaces the assumed one. `attempts` is the
    average number of attempts until a request ends.
    """

    rate: float
    replicas: int
    cold_start: float
    margin: float
    tick: float
    in_flight: int = 1
    searches: bool = False
    attempts: float = 1.0

    def in_flight_of(self, found: int | None) -> int:
        """Return the requests that a replica runs at a time; None if no search found them yet."""
        return found if found is not None and self.searches else self.in_flight

    @property
    def line_rate(self) -> float:
        """Requests per second that a replica ends, retries included."""
        return self.rate / self.attempts

    @property
    def speed(self) -> float:
        """Requests per second of all replicas."""
        return self.line_rate * self.replicas

    @property
    def lost(self) -> float:
        """Seconds before a deadline that are not counted on: the margin and one request's time."""
        return self.margin + (self.in_flight / self.rate if self.rate > 0 else 0.0)


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests without a result, and their deadline."""

    deadline: datetime
    lines: int


HALF_LIFE = 1800.0
"""Measured seconds after which the weight of a sample has halved."""
PRIOR_SECONDS = 120.0
"""Measured seconds that the configured rate counts as; half of that after as many seconds."""
SETTLED_SECONDS = 300.0
"""Measured seconds from which a rate says how fast a worker is with the requests in flight it found."""
CONFIDENCE = 1.645
"""Standard errors below the mean: one rate in twenty is lower than what is counted on."""
PRIOR_LINES = 200.0
"""Ended requests that the assumption of no retries counts as."""


@dataclass(frozen=True, slots=True)
class RateSample:
    """Requests that a worker ended in `seconds` during which it was full."""

    lines: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Weighted sums over samples of n requests in s seconds.

    `seconds` of s, `lines` of n, `squares` of n^2/s, and `weights` of s^2 with squared weights.
    """

    seconds: float = 0.0
    lines: float = 0.0
    squares: float = 0.0
    weights: float = 0.0

    def fold(self, samples: Iterable[RateSample]) -> Rate:
        """Return the rate with more samples added, oldest first; those without time are skipped."""
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
        """Requests per second; None until there is data."""
        return self.lines / self.seconds if self.seconds > 0 else None

    @property
    def is_settled(self) -> bool:
        """Whether the prior and the first samples no longer decide."""
        return self.seconds >= SETTLED_SECONDS

    @property
    def relative_error(self) -> float:
        """The standard error of the mean as a share of it; infinity until there is data."""
        mean = self.mean
        if not mean:
            return math.inf
        variance = max(0.0, self.squares / self.seconds - mean**2)
        return math.sqrt(variance * self.weights) / self.seconds / mean

    def lower_bound(self, prior: float) -> float:
        """Return the requests per second to count on: `prior` until there is data.

        The prior is one more sample, which fades. The bound is the mean less CONFIDENCE standard
        errors of samples weighted by their seconds, with Kish's effective sample size. It is never
        below a tenth of the mean or a hundredth of the prior: with a bound of 0, no promise would
        ever be made again.
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
    """Return the average attempts per request: retries inflate demand by the observed rate."""
    return 1 + max(retried, 0) / (max(ended, 0) + PRIOR_LINES)


def desired_replicas(
    rows: int, rows_per_replica: int, *, max_replicas: int, min_replicas: int = 0
) -> int:
    """Return ceil(rows / rows_per_replica), clamped to `min_replicas`..`max_replicas`."""
    return max(min_replicas, min(max_replicas, -(-rows // rows_per_replica)))


@dataclass(frozen=True, slots=True)
class PoolScale:
    """The scaling of a pool by KEDA: rows per replica, and the max and min number of replicas."""

    rows_per_replica: int
    replicas: int
    min_replicas: int = 0

    def replicas_for(self, rows: int, *, max_replicas: int | None = None) -> int:
        """Return the replicas for queued and running requests; the min number is above any max."""
        most = self.replicas if max_replicas is None else min(self.replicas, max_replicas)
        return desired_replicas(
            rows, self.rows_per_replica, max_replicas=most, min_replicas=self.min_replicas
        )


def scaled_replicas(
    depth: Depth,
    scale: PoolScale,
    *,
    planned: int | None,
    paused: bool,
    stranded: int = 0,
) -> int:
    """Return the number of replicas that KEDA runs: no more than `planned`, if the pool is planned.

    The min number of replicas runs in any case, as KEDA knows no other. Requests in a pool keep one
    replica there even if the plan needs none: those that stay on dedicated, and those still running.
    Requests that wait in a paused pool need none. `stranded` is the number of workers in a pool whose
    engines are all unavailable: it gets no more of them.
    """
    if paused:
        return scale.replicas_for(depth.running)
    max_replicas = scale.replicas if planned is None else max(planned, 1)
    if stranded:
        max_replicas = min(max_replicas, stranded)
    return scale.replicas_for(depth.queued + depth.running, max_replicas=max_replicas)

"""Demand against dedicated capacity: what may be promised when spot promises nothing.

Work is divisible, spot comes and goes, dedicated capacity is stable and bounded. Demand in deadline
order is met by earliest deadline first if and only if for every k (demand bound, Liu and Layland
1973, Baruah et al. 1990)

    lines_1 + ... + lines_k  <=  rate * sum over replicas of (deadline_k - now - lost - start_i)+

where `start_i` is how long replica i takes until it works: nothing if it is warm, a cold start if it
is not there yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


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

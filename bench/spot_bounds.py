"""Bounds of a batch's cost on a recorded spot market, with and without knowledge of the market."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.planning.demand import Capacity


@dataclass(frozen=True, slots=True)
class Window:
    """The available spot replicas every `gap` seconds, and a batch of `lines` within `seconds`."""

    market: Sequence[int]
    gap: float
    seconds: float
    lines: int


def all_dedicated(window: Window, capacity: Capacity) -> float:
    """Return the seconds that all dedicated replicas, started at once, need for the batch."""
    if capacity.replicas == 0:
        return math.inf
    return capacity.cold_start + math.ceil(window.lines / capacity.replicas) / capacity.rate


def omniscient(window: Window, capacity: Capacity, price_ratio: float) -> float:
    """Return a lower bound of the cost of any schedule, even one that knows the market.

    A spot replica available for a session runs requests for its length less the cold start;
    treating the market as a stack gives the longest sessions. Work fills the cheapest sessions
    first, in fractions, and the rest runs on dedicated replicas that live for the whole window.
    """
    start = capacity.cold_start
    offers = [(price_ratio * window.seconds / max(window.seconds - start, 1e-9), math.inf)]
    offers += [
        (length / (length - start), (length - start) * capacity.rate)
        for length in _sessions(window)
        if length > start
    ]
    cost, left = 0.0, float(window.lines)
    for price, lines in sorted(offers):
        run = min(left, lines)
        cost += price * run / capacity.rate
        left -= run
        if left <= 0:
            break
    return cost


def _sessions(window: Window) -> list[float]:
    """Return the lengths of the market's sessions in seconds, with the market as a stack."""
    begun: list[float] = []
    lengths = []
    for position, places in enumerate([*window.market, 0]):
        at = min(position * window.gap, window.seconds)
        while len(begun) > places:
            lengths.append(at - begun.pop())
        begun += [at] * (places - len(begun))
    return lengths

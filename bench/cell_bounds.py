"""A lower bound of what the work of many cells costs with knowledge of all prices and markets.

It relaxes the problem. Any request may run in any cell, in parts, from the start of the slot in which it
is created until its deadline; what is late in a run need not run; dedicated capacity is unlimited, at
the lowest price, and warm. A spot replica that is available for L seconds, of which c are its cold
start, costs at least L / (L - c) for each second that it works. Spot seconds of a price and time form a
transversal matroid (which of them can all be used within windows), so the cheapest first is optimal; and
the most work within windows is that of the earliest deadline first (Jackson 1955).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.cell_world import SLOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.cell_run import Batch
    from bench.cell_world import Floats, Market
    from lowtide.planning.demand import Capacity

CLASSES: Final = 60
"""Classes of the prices of spot seconds; each has its lowest."""


def omniscient(
    markets: Sequence[Market], capacity: Capacity, batches: Sequence[Batch], useful: float
) -> float:
    """Return a lower bound of the cost of any schedule that ends `useful` requests in time."""
    slots = max(batch.slot for batch in batches)
    # The work that is created in a slot and due at a later one.
    work = np.zeros((slots, slots + 1))
    for batch in batches:
        work[int(batch.created / SLOT), batch.slot] += batch.lines
    dearest = min(market.dedicated for market in markets)
    prices, seconds = _spot_seconds(markets, capacity, slots, dearest)
    cost = ended = 0.0
    for number, price in enumerate(prices):
        most = min(most_in_time(work, seconds[: number + 1].sum(axis=0) * capacity.rate), useful)
        cost += price * max(most - ended, 0.0)
        ended = max(most, ended)
    return (cost + dearest * (useful - ended)) / 3600 / capacity.rate


def most_in_time(work: Floats, room: Floats) -> float:
    """Return the most requests that can end in time, with `room` for some in each slot."""
    waiting = np.zeros(work.shape[1])
    ended = 0.0
    for slot, most in enumerate(room.tolist()):
        waiting += work[slot]
        waiting[: slot + 1] = 0.0
        left = np.maximum(waiting.cumsum() - most, 0.0)
        still = np.diff(left, prepend=0.0)
        ended += float((waiting - still).sum())
        waiting = still
    return ended


def _spot_seconds(
    markets: Sequence[Market], capacity: Capacity, slots: int, dearest: float
) -> tuple[list[float], Floats]:
    """Return prices, lowest first, and the spot seconds of each by slot; none above `dearest`."""
    cheapest = min(market.spot for market in markets)
    step = (dearest - cheapest) / CLASSES
    seconds = np.zeros((CLASSES, slots))
    edges = np.arange(slots + 1) * SLOT
    for market, cells in Counter(map(id, markets)).items():
        each = next(known for known in markets if id(known) == market)
        for begin, end, replicas in _sessions(each, slots * SLOT):
            works = end - begin - capacity.cold_start
            if works <= 0 or (price := each.spot * (end - begin) / works) >= dearest:
                continue
            until = np.clip(edges, begin + capacity.cold_start, end)
            number = min(math.floor((price - cheapest) / step), CLASSES - 1)
            seconds[number] += np.diff(until) * (replicas * cells)
    return [cheapest + step * number for number in range(CLASSES)], seconds


def _sessions(market: Market, until: float) -> Iterator[tuple[float, float, int]]:
    """Yield the beginning, the end and the number of sessions, the longest possible ones."""
    begun: list[tuple[float, int]] = []
    present = 0
    for position in range(math.ceil(until / market.gap) + 1):
        at = min(position * market.gap, until)
        places = market.at(position * market.gap) if at < until else 0
        while present > places:
            begin, count = begun.pop()
            stopped = min(count, present - places)
            yield begin, at, stopped
            present -= stopped
            if stopped < count:
                begun.append((begin, count - stopped))
        if places > present:
            begun.append((at, places - present))
            present = places

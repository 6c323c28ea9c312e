"""The spot markets of many cells: recorded ones of several zones, or synthetic ones.

All cells of a zone see the same market at the same time, from a random point of the recording on.
Recordings hold no prices: those of each zone are drawn at random.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.cell_world import Market
from bench.spot_traces import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

SPOT: Final = 200
"""Spot replicas of a cell when its market is at its maximum."""
DEDICATED_PRICE: Final = 3.0
"""Per replica hour; each zone has between 0.9 and 1.1 of it."""
SPOT_SHARE: Final = (0.25, 0.45)
"""The range of spot's price, relative to dedicated of its zone."""
SYNTHETIC_ZONES: Final = 8
SYNTHETIC_GAP: Final = 300.0
SYNTHETIC_HOURS: Final = 240
MEAN_HOURS: Final = (2.0, 6.0)
"""Mean hours of a level of a synthetic market, by zone; levels are uniform, one in four is none."""


def zones(traces: Sequence[Trace], hours: float, seed: int) -> list[Market]:
    """Return each zone's market for some hours."""
    rng = random.Random(f"{seed} zones")  # noqa: S311
    markets = []
    for recorded in traces:
        trace = recorded.scaled_to(SPOT)
        length = int(hours * 3600 / trace.gap) + 1
        start = rng.randrange(max(1, len(trace.places) - length + 1))
        dedicated = DEDICATED_PRICE * rng.uniform(0.9, 1.1)
        spot = dedicated * rng.uniform(*SPOT_SHARE)
        places = np.array(trace.cut(start, length), dtype=np.int64)
        markets.append(
            Market(trace.name, places, trace.gap, spot, dedicated, _interruptions(trace))
        )
    return markets


def spread(markets: Sequence[Market], cells: int) -> list[Market]:
    """Return the market of each cell; zones have as many cells, up to one."""
    return [markets[number % len(markets)] for number in range(cells)]


def synthetic(seed: int) -> list[Trace]:
    """Return traces of levels that last for random times."""
    rng = random.Random(f"{seed} synthetic")  # noqa: S311
    points = int(SYNTHETIC_HOURS * 3600 / SYNTHETIC_GAP)
    traces = []
    for number in range(SYNTHETIC_ZONES):
        mean = rng.uniform(*MEAN_HOURS) * 3600 / SYNTHETIC_GAP
        places: list[int] = []
        while len(places) < points:
            level = rng.choice((0, 1, 1, 1)) * rng.randint(1, SPOT)
            places += [level] * max(1, round(rng.expovariate(1 / mean)))
        traces.append(Trace(f"synthetic-{number + 1}", SYNTHETIC_GAP, places[:points]))
    return traces


def _interruptions(trace: Trace) -> float:
    """Return the interruptions per spot replica and hour in the whole recording."""
    places = np.array(trace.places)
    lost = np.maximum(-np.diff(places), 0).sum()
    return float(lost / max(places.sum() * trace.gap / 3600, 1.0))

"""Latency of a list that a front merges, by the number of cells that it asks.

Each cell answers after a time of the measured distribution and the round trip to its region. A slow
cell takes SLOW times as long; one that is away takes the front's timeout, unless a heartbeat has told
the front not to ask it.
"""

from __future__ import annotations

import heapq
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from lowtide.cells.merging import Page, merged_pages
from lowtide.core.ids import parse_batch_id, uuid7

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.cell_world import Floats

QUANTILES: Final = (
    (0.0, 6.8), (0.01, 8.3), (0.1, 8.9), (0.25, 9.3), (0.5, 9.8), (0.75, 11.2), (0.9, 14.2),
    (0.95, 17.1), (0.99, 23.9), (0.999, 40.6), (1.0, 53.1),
)  # fmt: skip
"""Milliseconds of `GET /v1/batches?limit=20` at one cell of a local stack with 200 batches: 2,000
calls, one after the other, on two cores."""
ROUND_TRIPS: Final = (1.0, 15.0, 30.0, 60.0, 75.0, 90.0, 110.0, 150.0)
"""Milliseconds to each region, an assumption; cells take turns."""
CELLS: Final = (1, 3, 10, 100, 1000)
LIMIT: Final = 20
SLOW: Final = 20.0
TIMEOUT: Final = 5000.0
THREADS: Final = 32
"""Calls at a time of a front."""
HEARTBEAT_TIMEOUT: Final = 2000.0
TRIALS: Final = 1000


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What the share of cells that is not well does: `factor` of its time, or no answer."""

    name: str
    share: float = 0.0
    factor: float = 1.0
    away: bool = False
    known: bool = False


DISTURBANCES: Final = (
    Disturbance("all well"),
    Disturbance("1 % slow", 0.01, factor=SLOW),
    Disturbance("1 % away, not known yet", 0.01, away=True),
    Disturbance("1 % away, known", 0.01, away=True, known=True),
)


def answers(cells: int, kind: Disturbance, rng: np.random.Generator, trials: int) -> Floats:
    """Return the milliseconds until each cell answers, by list and cell; 0 if it is not asked."""
    shares, values = zip(*QUANTILES, strict=True)
    own = np.interp(rng.random((trials, cells)), shares, values)
    trips = np.array(ROUND_TRIPS)[np.arange(cells) % len(ROUND_TRIPS)]
    disturbed = rng.random((trials, cells)) < kind.share
    unwell = (0.0 if kind.known else TIMEOUT) if kind.away else kind.factor * own + trips
    times: Floats = np.where(disturbed, unwell, own + trips)
    return np.minimum(times, TIMEOUT)


def in_turn(times: Sequence[float], threads: int) -> float:
    """Return when the last call ends, if `threads` of them run at a time, in order."""
    busy = [0.0] * threads
    for each in times:
        heapq.heappushpop(busy, busy[0] + each)
    return max(busy)


def lists(seed: int, trials: int = TRIALS) -> list[dict[str, Any]]:
    """Return p50 and p99 of lists, in milliseconds, asked at once and with a pool of threads."""
    rows = []
    for kind in DISTURBANCES:
        for cells in CELLS:
            rng = np.random.default_rng([seed, cells])
            times = answers(cells, kind, rng, trials)
            some = times[: max(20, min(trials, 100_000 // cells))].tolist()
            pooled = [in_turn(each, THREADS) for each in some]
            row: dict[str, Any] = {"cells": cells, "disturbed": kind.name}
            for name, values in (("at_once", times.max(axis=1)), ("pool", np.array(pooled))):
                row[f"{name}_p50_ms"], row[f"{name}_p99_ms"] = (
                    round(float(value), 1) for value in np.percentile(values, [50, 99])
                )
            row["incomplete"] = round(1 - (1 - kind.share) ** cells, 4) if kind.away else 0.0
            rows.append(row)
    return rows


def rounds(cells: int, seed: int) -> list[dict[str, float]]:
    """Return the seconds in which a front hears all cells, some of them away.

    A heartbeat takes as long as a list of one cell.
    """
    rows = []
    for away in (0.0, 0.01, 0.1):
        kind = Disturbance("away", away, away=True)
        times = answers(cells, kind, np.random.default_rng(seed), 20)
        ends = [in_turn(np.minimum(each, HEARTBEAT_TIMEOUT).tolist(), THREADS) for each in times]
        rows.append({"away": away, "mean_s": round(float(np.mean(ends)) / 1000, 2)})
    return rows


def merging(cells: int) -> float:
    """Return the measured CPU milliseconds of merging full pages of batches."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    ids = (
        [uuid7(start - timedelta(seconds=line), os.urandom, cell + 1) for line in range(LIMIT)]
        for cell in range(cells)
    )
    pages = [
        Page([msgspec.Raw(b'{"id": "batch_%s"}' % id_.hex.encode()) for id_ in each])
        for each in ids
    ]
    repeats = max(3, 1000 // cells)
    before = time.process_time()
    for _ in range(repeats):
        merged_pages(pages, parse_batch_id, LIMIT)
    return 1000 * (time.process_time() - before) / repeats

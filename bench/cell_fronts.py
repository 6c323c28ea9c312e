"""Fronts alone: the CPU time of a placement, and what old heartbeats do to the spread of load."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lowtide.cells.model import Cell, Cells, Demand, Quote, Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AGES: Final = (1.0, 5.0, 15.0, 60.0)
"""Seconds between two heartbeats."""
QUOTES: Final = (1, 3, 10)
PLACEMENTS: Final = 300
SECONDS: Final = 120
MEAN: Final = 5000.0
"""Requests of a small batch."""
RATE: Final = 1000.0
"""Requests a second for each cell."""
SPEED: Final = 1250.0
"""Requests a second that each cell ends."""


def cells_of(count: int) -> Cells:
    """Return cells in eight regions."""
    return Cells(
        [
            Cell(number, f"cell-{number}", f"http://cell-{number}", f"region-{number % 8}")
            for number in range(1, count + 1)
        ]
    )


def placement_cpu(cells: int, seed: int) -> list[dict[str, Any]]:
    """Measure the CPU time of `Cells.place`; each cell has some fleets, and the model is known."""
    rows = []
    for quotes in QUOTES:
        rng = random.Random(seed)  # noqa: S311
        known = cells_of(cells)
        reports = {
            cell.number: Report(
                tuple(
                    Quote((f"model-{fleet}",), rng.uniform(1, 3), rng.uniform(0, 5000))
                    for fleet in range(quotes)
                )
            )
            for cell in known.cells
        }
        demand = Demand("tenant", 3600.0, "model-0")
        spent = []
        for _ in range(PLACEMENTS):
            before = time.process_time_ns()
            known.place(demand, reports, rng)
            spent.append((time.process_time_ns() - before) / 1000)
        p50, p99 = np.percentile(spent, [50, 99])
        rows.append({"quotes": quotes, "p50_us": round(p50), "p99_us": round(p99)})
    return rows


def herding(cells: int, seed: int, ages: Sequence[float] = AGES) -> list[dict[str, Any]]:
    """Return the seconds of queued work of the cells while many small batches are placed.

    All cells cost the same and end requests at the same speed. `least` is the reference that always
    takes the cell with the least to do by the same heartbeats.
    """
    rows = []
    for age in ages:
        row: dict[str, Any] = {"age_s": age}
        for name, is_ours in (("ours", True), ("least", False)):
            waits = _rush(cells, seed, age, is_ours=is_ours)
            row[f"{name}_p50_s"], row[f"{name}_p99_s"], row[f"{name}_max_s"] = (
                round(float(value), 1) for value in np.percentile(waits, [50, 99, 100])
            )
        rows.append(row)
    return rows


def _rush(cells: int, seed: int, age: float, *, is_ours: bool) -> np.ndarray[Any, Any]:
    rng = random.Random(seed)  # noqa: S311
    known = cells_of(cells)
    lines = np.zeros(cells)
    demand = Demand("tenant", 86_400.0)
    now, heard, end = 0.0, -age, float(SECONDS)
    reports: Mapping[int, Report] = {}
    gap = MEAN / (RATE * cells)
    waits: list[float] = []
    while now < end:
        if now - heard >= age:
            heard += age
            waits = (lines / SPEED).tolist()
            reports = {
                number: Report((Quote(("*",), 1.0, wait),)) for number, wait in enumerate(waits, 1)
            }
        cell = known.place(demand, reports, rng).number - 1 if is_ours else waits.index(min(waits))
        lines[cell] += rng.expovariate(1 / MEAN)
        step = rng.expovariate(1 / gap)
        lines = np.maximum(lines - SPEED * step, 0.0)
        now += step
    return lines / SPEED

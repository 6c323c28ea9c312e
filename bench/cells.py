"""A thousand cells and a million requests a second on recorded spot markets, simulated.

    python -m bench.cells [--cells 1000] [--hours 4] [--seeds 1,2,3] [--traces DIR | --synthetic] \\
        [--plot FOLDER] [--json]

Fronts place batches with the product's own `Cells.place`, from heartbeats that are up to 20 s old, and
each cell plans its dedicated replicas with the scheduler's own bound (`plan_tick`). Printed are:

- cost by the way to place, misses, and the same against a lower bound that knows all markets
  (bench/cell_bounds.py); "at random" places without heartbeats, "one zone" has all cells in one;
- an outage of a tenth of the cells: their work waits for their return, or is evacuated;
- the spread of load with heartbeats of some age, and the measured CPU time of a placement;
- the latency of merged lists.

Simplified: requests are a fluid in slots of equal deadlines (ten minutes), time has steps of ten
seconds, tenants have no weights or limits, any cell may have any work, rates are known, recordings hold
no prices (drawn at random), and each of the fewer zones recorded has many cells. Ends with one JSON line;
exits with 1 if work was lost, a bound was broken, or placement missed its bars.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.cell_fronts import herding, placement_cpu
from bench.cell_lists import CELLS as LISTED
from bench.cell_lists import lists, merging, rounds
from bench.cell_markets import spread, synthetic, zones
from bench.cell_run import WINDOWS, Outage, Run, Work
from bench.cell_table import (
    failover,
    figures,
    print_costs,
    print_fronts,
    print_lists,
    print_outages,
)
from bench.spot_traces import read_traces
from lowtide.planning.demand import Capacity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.spot_traces import Trace

ROOT = Path(__file__).resolve().parent.parent
TRACES = ROOT.parent / "shared" / "data" / "spot-traces"
CAPACITY: Final = Capacity(rate=10.0, replicas=150, cold_start=180.0, margin=60.0, tick=300.0)
"""Of each cell: dedicated replicas of 10 requests/s."""
RATE: Final = 1000.0
"""Requests a second for each cell."""
MEAN: Final = 500_000.0
"""Requests of a batch."""
FEW: Final = 40
"""Cells of one zone alone, which all see the same market: as many as need be."""
OUTAGE: Final = Outage(at=7200.0, seconds=5400.0, share=0.1)
EVACUATE: Final = 900.0
DAY: Final = 86_400.0
ELSEWHERE_BAR: Final = 30.0
"""Seconds until new work goes to other cells."""
LATE_BAR: Final = 0.005
"""Late requests of those placed by fronts, without an outage."""
CPU_BAR: Final = 1000
"""Microseconds of a placement."""


def run_one(task: tuple[str, int, int, float, Sequence[Trace]]) -> list[dict[str, Any]]:
    """Run one scenario of a seed; return its rows."""
    name, seed, cells, hours, traces = task
    longest = max(seconds for seconds, _ in WINDOWS) / 3600
    markets = zones(traces, hours + longest, seed)
    everywhere = spread(markets, cells)
    work = Work(RATE * cells, hours * 3600, MEAN)
    row: dict[str, Any] = {"seed": seed, "placed": name}
    if name == "one zone":
        few = min(cells, FEW)
        work = Work(RATE * few, hours * 3600, MEAN)
        rows = []
        for market in markets:
            run = Run(spread([market], few), CAPACITY, work, seed)
            rows.append({**row, "zone": market.zone, **figures(run, run.run())})
        return rows
    evacuate = EVACUATE if name == "evacuated" else None
    outage = replace(OUTAGE, evacuate=evacuate) if name in {"waits", "evacuated"} else None
    run = Run(
        everywhere,
        CAPACITY,
        work,
        seed,
        outage=outage,
        blind=name == "at random",
        window=DAY if name == "by a day" else None,
    )
    outcome = run.run()
    row |= figures(run, outcome) | failover(run, outcome, OUTAGE)
    row["history"] = [
        (each.at, each.market, each.spot, each.dedicated, float(np.percentile(each.waits, 99)))
        for each in outcome.history
    ]
    return [row]


SCENARIOS: Final = ("by fronts", "waits", "evacuated", "at random", "one zone", "by a day")
"""The last one, whose fronts do not know the windows, for the first seed only."""


def missed(rows: Sequence[dict[str, Any]], cpu: Sequence[dict[str, Any]]) -> list[str]:
    """Return what broke an invariant or missed a bar."""
    problems = []
    for row in rows:
        name = f"seed {row['seed']}, {row['placed']}"
        if row["lost"]:
            problems.append(f"{name}: {row['lost']} requests are lost")
        if row["cost_vs_omniscient"] < 1:
            problems.append(f"{name}: costs less than the bound")
        if row.get("elsewhere_after_s", 0) > ELSEWHERE_BAR:
            problems.append(f"{name}: new work goes elsewhere after {row['elsewhere_after_s']} s")
        if row["missed_share"] and row["placed"] not in {"waits", "evacuated"}:
            problems.append(f"{name}: the scheduler broke promises")
        if row["placed"] == "by fronts" and row["late_share"] > LATE_BAR:
            problems.append(f"{name}: {row['late_share']:.2%} of the requests are late")
    problems += [
        f"a placement among {row['quotes']} fleets a cell takes {row['p50_us']} us"
        for row in cpu
        if row["quotes"] == 1 and row["p50_us"] > CPU_BAR
    ]
    return problems


def main() -> int:
    """Run everything; return 1 if something was missed."""
    arguments = _arguments()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    tasks = []
    is_synthetic = arguments.synthetic or not arguments.traces.is_dir()
    for seed in seeds:
        traces = synthetic(seed) if is_synthetic else read_traces(arguments.traces)
        names = SCENARIOS if seed == seeds[0] else SCENARIOS[:-1]
        tasks += [(name, seed, arguments.cells, arguments.hours, traces) for name in names]
    # First, while nothing else runs.
    cpu = placement_cpu(arguments.cells, seeds[0])
    merges = [{"cells": cells, "ms": round(merging(cells), 3)} for cells in LISTED]
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        herds = pool.submit(herding, arguments.cells, seeds[0])
        rows = [row for of_task in pool.map(run_one, tasks) for row in of_task]
    listed = lists(seeds[0])
    heard = rounds(arguments.cells, seeds[0])
    if not arguments.json:
        markets = "synthetic markets" if is_synthetic else f"recorded markets of {arguments.traces}"
        print(f"{arguments.cells} cells, {RATE * arguments.cells:,.0f} requests/s, {markets}")
        print_costs(rows)
        print_outages(rows, OUTAGE, EVACUATE)
        print_fronts(cpu, herds.result())
        print_lists(listed, merges, heard)
    if arguments.plot:
        from bench.cell_plot import draw

        away = OUTAGE.at, OUTAGE.at + OUTAGE.seconds
        draw(arguments.plot, rows, herds.result(), listed, away)
    problems = missed(rows, cpu)
    for row in rows:
        row.pop("history", None)
    result = {
        "cells": arguments.cells,
        "synthetic": is_synthetic,
        "runs": rows,
        "placement": cpu,
        "herding": herds.result(),
        "lists": listed,
        "merging": merges,
        "heartbeat_rounds": heard,
        "missed": problems,
    }
    print(json.dumps(result))
    return int(bool(problems))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=4.0, help="during which batches are created")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument(
        "--traces",
        type=Path,
        default=TRACES,
        help="folder, searched recursively; synthetic markets if it is absent",
    )
    parser.add_argument("--synthetic", action="store_true", help="markets of stated parameters")
    parser.add_argument("--plot", type=Path, help="folder for the plots")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

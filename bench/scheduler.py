"""What keeping deadlines costs: the scheduler's own code over recorded spot markets.

    python -m bench.scheduler --traces DIR --dedicated 16 --load 0.6 --hours 24 --windows 100 \\
        --price-ratio 3 --cold-start 180 --seed 1 --json

Reads every `{"metadata": {"gap_seconds": s}, "data": [n, …]}` under DIR and draws windows from each at
random. A batch of load x D x hours replica-hours must end within its window. Costs are means over the
windows, divided by the cost of running all of it on D dedicated replicas from the start:

- greedy: the whole batch moves to dedicated once it is at risk;
- ours: what `functions/schedule` decides, tick by tick;
- omniscient: a lower bound for any schedule that pays its cold starts; "free starts" is the same
  bound for one that does not.

Without --load and --dedicated it prints the whole table. A window is infeasible when D dedicated
replicas from the start could not end the batch in time; every other one that ends late is a miss, and
the exit status is 1. Markets with fewer places than D are scaled to D. Ends with one JSON line.

With --fleets it prints the table of several fleets instead (bench/fleet_table.py), each on a market of
its own: apart from each other, with a fallback, and with true rates that change while the plan knows only
what workers measure. A miss there is a late batch that the bound promised, and a fleet that costs more or
less than it does alone is an error. Only --traces, --windows, --hours, --seed and --json apply.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.fleet_table import print_fleets
from bench.spot_bounds import Window, all_dedicated, omniscient
from bench.spot_replay import greedy, replay
from bench.spot_traces import read_traces
from lowtide.planning.demand import Capacity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.spot_traces import Trace

ROOT = Path(__file__).resolve().parent.parent
TRACES = ROOT.parent / "shared" / "data" / "spot-traces"
DEDICATED = (16, 4)
LOADS = (0.2, 0.6, 0.95)
HEAD = (
    "|   D | load | all D | greedy | ours | omniscient | ours/omniscient | ours/free starts "
    "| windows | misses | infeasible |\n" + "|---" * 11 + "|"
)


@dataclass(slots=True)
class Row:
    """The results of one row's windows; costs are relative to all-dedicated."""

    misses: int = 0
    infeasible: int = 0
    greedy: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    omniscient: list[float] = field(default_factory=list)
    free_starts: list[float] = field(default_factory=list)

    def add(self, other: Row) -> None:
        """Merge another row into this one."""
        self.misses += other.misses
        self.infeasible += other.infeasible
        for name in ("greedy", "ours", "omniscient", "free_starts"):
            getattr(self, name).extend(getattr(other, name))

    def summary(self) -> dict[str, Any]:
        """Return the figures for the JSON line."""
        return {
            "windows": len(self.ours),
            "misses": self.misses,
            "infeasible": self.infeasible,
            "cost_vs_dedicated": _mean(self.ours),
            "cost_vs_omniscient": _ratio(self.ours, self.omniscient),
            "cost_vs_free_starts": _ratio(self.ours, self.free_starts),
            "greedy_vs_dedicated": _mean(self.greedy),
            "omniscient_vs_dedicated": _mean(self.omniscient),
        }


def windows(trace: Trace, arguments: argparse.Namespace, load: float) -> Iterator[Window]:
    """Yield windows that begin at random points, the same for every load."""
    rng = random.Random(f"{arguments.seed} {trace.name}")  # noqa: S311
    seconds = arguments.hours * 3600.0
    lines = max(1, math.floor(load * arguments.replicas * seconds * arguments.rate))
    length = math.ceil(seconds / trace.gap)
    for _ in range(arguments.windows):
        start = rng.randrange(max(1, len(trace.places) - length + 1))
        yield Window(trace.cut(start, length), trace.gap, seconds, lines)


def run_row(traces: Sequence[Trace], arguments: argparse.Namespace, load: float) -> Row:
    """Run every window of one row."""
    row = Row()
    for trace in traces:
        capacity = Capacity(
            rate=arguments.rate,
            replicas=arguments.replicas,
            cold_start=arguments.cold_start,
            margin=0.0,
            tick=arguments.tick or trace.gap,
            in_flight=1,
        )
        free = Capacity(arguments.rate, arguments.replicas, 0.0, 0.0, capacity.tick)
        for window in windows(trace.scaled_to(arguments.replicas), arguments, load):
            alone = all_dedicated(window, capacity)
            whole = arguments.price_ratio * arguments.replicas * alone
            ours = replay(window, capacity)
            row.infeasible += alone > window.seconds
            row.misses += ours.ended is None and alone <= window.seconds
            row.ours.append(ours.cost(arguments.price_ratio) / whole)
            if not arguments.no_greedy:
                moved = replay(window, capacity, greedy)
                row.greedy.append(moved.cost(arguments.price_ratio) / whole)
            row.omniscient.append(omniscient(window, capacity, arguments.price_ratio) / whole)
            row.free_starts.append(omniscient(window, free, arguments.price_ratio) / whole)
    return row


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 4) if values else None


def _ratio(ours: Sequence[float], bound: Sequence[float]) -> float | None:
    return round(fmean(ours) / fmean(bound), 4) if bound and fmean(bound) > 0 else None


def _print_row(replicas: int, load: float, row: Row) -> None:
    told = row.summary()
    cells = [
        told["greedy_vs_dedicated"],
        told["cost_vs_dedicated"],
        told["omniscient_vs_dedicated"],
        told["cost_vs_omniscient"],
        told["cost_vs_free_starts"],
    ]
    figures = " | ".join("    -" if cell is None else f"{cell:5.3f}" for cell in cells)
    print(
        f"| {replicas:3d} | {load:4.2f} | 1.000 | {figures} | {told['windows']:5d} "
        f"| {row.misses:4d} | {row.infeasible:4d} |",
        flush=True,
    )


def main() -> int:
    """Print the table; return 1 if a feasible deadline was missed."""
    arguments = _arguments()
    traces = read_traces(arguments.traces)
    if arguments.fleets:
        seconds = arguments.hours * 3600.0
        told = print_fleets(
            traces, arguments.windows, seconds, arguments.seed, quiet=arguments.json
        )
        print(json.dumps(told))
        return int(told["misses"] > 0 or told["disturbed"] > 0)
    if arguments.plot:
        from bench.spot_plot import draw

        arguments.replicas = arguments.dedicated or DEDICATED[0]
        draw(arguments.plot, *_pick(traces, arguments))
    if not arguments.json:
        print(f"{len(traces)} traces, {arguments.windows} windows of {arguments.hours:g} h each")
        print(HEAD)
    total = Row()
    for replicas in [arguments.dedicated] if arguments.dedicated else DEDICATED:
        for load in LOADS if arguments.load is None else [arguments.load]:
            arguments.replicas = replicas
            row = run_row(traces, arguments, load)
            if not arguments.json:
                _print_row(replicas, load, row)
            total.add(row)
    print(json.dumps(total.summary()))
    return int(total.misses > 0)


def _pick(traces: Sequence[Trace], arguments: argparse.Namespace) -> tuple[Window, Capacity]:
    """Return the window to draw: --plot-window, or the one that used both pools most."""
    trace = traces[0].scaled_to(arguments.replicas)
    load = LOADS[1] if arguments.load is None else arguments.load
    capacity = Capacity(
        arguments.rate, arguments.replicas, arguments.cold_start, 0.0, arguments.tick or trace.gap
    )
    drawn = list(windows(trace, arguments, load))
    if arguments.plot_window is not None:
        return drawn[arguments.plot_window % len(drawn)], capacity
    outcomes = [replay(window, capacity) for window in drawn]
    both = [min(outcome.spot, outcome.dedicated) for outcome in outcomes]
    return drawn[both.index(max(both))], capacity


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder, searched recursively")
    parser.add_argument("--dedicated", type=_positive(int), help="D, max dedicated replicas")
    parser.add_argument("--load", type=_positive(float), help="work / (D x hours)")
    parser.add_argument("--hours", type=_positive(float), default=24.0, help="completion window")
    parser.add_argument("--windows", type=_positive(int), default=100, help="windows per trace")
    parser.add_argument(
        "--price-ratio", type=_positive(float), default=3.0, help="dedicated : spot"
    )
    parser.add_argument("--cold-start", type=_not_negative, default=180.0, help="seconds")
    parser.add_argument("--tick", type=_positive(float), help="seconds (default: the trace's)")
    parser.add_argument(
        "--rate", type=_positive(float), default=0.5, help="requests/s of a replica"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fleets", action="store_true", help="several fleets instead of one")
    parser.add_argument("--no-greedy", action="store_true", help="skip the comparison")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    parser.add_argument("--plot", type=Path, help="plot one run to this file (.svg, .png)")
    parser.add_argument("--plot-window", type=int, help="window to plot, from 0")
    return parser.parse_args()


def _positive(kind: type[int] | type[float]) -> Any:
    def read(value: str) -> float:
        number = kind(value)
        if not 0 < number < math.inf:
            raise argparse.ArgumentTypeError(f"{value} must be above 0")
        return number

    return read


def _not_negative(value: str) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{value} must not be below 0")
    return number


if __name__ == "__main__":
    sys.exit(main())

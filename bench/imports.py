"""Cold start of each function: import time under the functions framework, and memory.

Prints a table, then one JSON line. The bars are 0.5 s and 120 MB. Each figure is the median of
several fresh processes. With `--against FOLDER`, another checkout is measured in turn with this
one, and the table has the ratios to it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from operator import truediv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5
SECONDS_BAR, MEGABYTES_BAR = 0.5, 120

PROBE = """
import re, resource, sys, time
began = time.perf_counter()
import functions_framework
framework = time.perf_counter() - began
functions_framework.create_app(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - began
status = open("/proc/self/status").read()
resident = int(re.search(r"^VmRSS:\\s+([0-9]+)", status, re.M)[1]) / 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(framework, seconds, time.process_time(), peak, resident)
"""


class Figures(NamedTuple):
    """Seconds of the framework's import and of all, those of the CPU, peak and present resident MB."""

    framework: float
    seconds: float
    cpu: float
    peak: float
    resident: float


class ProbeFailed(Exception):
    """A checkout whose function cannot be imported; the message has the cause."""


def probe(name: str, root: Path = ROOT) -> Figures:
    """Return the figures of one fresh process that runs a checkout's code.

    Raises OSError if the checkout is no folder, ProbeFailed if it does not have the function.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PROBE, name, str(root / "functions" / name / "main.py")],
        capture_output=True,
        text=True,
        check=False,
        cwd=str(root),
        env=os.environ | {"LOWTIDE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"},
    )
    if done.returncode:
        raise ProbeFailed(f"{name} of {root}: {done.stderr.strip().splitlines()[-1]}")
    return Figures(*map(float, done.stdout.split()))


def median(runs: list[Figures]) -> Figures:
    """Return the median of each figure."""
    return Figures(*map(statistics.median, zip(*runs, strict=True)))


def compare(other: Path, functions: list[str], runs: int) -> dict[str, dict[str, float]]:
    """Print the functions' figures here, and the median of the ratios to another checkout's."""
    ratios = {}
    print(f"{'function':16}{'CPU s':>8}{'ratio':>8}{'seconds':>9}{'ratio':>8}{'MB':>8}{'ratio':>8}")
    for name in functions:
        for root in (ROOT, other):
            probe(name, root)  # compiles
        pairs = [(probe(name), probe(name, other)) for _ in range(runs)]
        here = median([pair[0] for pair in pairs])
        ratio = median([Figures(*map(truediv, *pair)) for pair in pairs])
        ratios[name] = {
            "cpu": round(ratio.cpu, 3),
            "seconds": round(ratio.seconds, 3),
            "resident": round(ratio.resident, 3),
        }
        print(
            f"{name:16}{here.cpu:8.3f}{ratio.cpu:8.3f}{here.seconds:9.3f}{ratio.seconds:8.3f}"
            f"{here.resident:8.1f}{ratio.resident:8.3f}",
            flush=True,
        )
    return ratios


def report(functions: list[str], runs: int) -> list[str]:
    """Print the functions' figures; return those over a bar."""
    figures = {name: median([probe(name) for _ in range(runs)]) for name in functions}
    print(f"{'function':16}{'seconds':>9}{'framework':>11}{'x framework':>13}{'MB':>7}")
    for name, one in figures.items():
        ratio = one.seconds / one.framework
        print(f"{name:16}{one.seconds:9.3f}{one.framework:11.3f}{ratio:13.2f}{one.peak:7.1f}")
    over = [
        name
        for name, one in figures.items()
        if one.seconds > SECONDS_BAR or one.peak > MEGABYTES_BAR
    ]
    shown = {
        name: {"seconds": round(one.seconds, 3), "megabytes": round(one.peak, 1)}
        for name, one in figures.items()
    }
    print(json.dumps({"functions": shown, "over_bar": over}))
    return over


def main() -> None:
    """Measure the named functions, or all; exit with 1 if one is over a bar."""
    every = sorted(source.parent.name for source in ROOT.glob("functions/*/main.py"))
    parser = argparse.ArgumentParser()
    parser.add_argument("functions", nargs="*", default=every)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    try:
        if options.against is not None:
            ratios = compare(options.against.resolve(), options.functions, options.runs)
            print(json.dumps({"ratios": ratios}))
        elif report(options.functions, options.runs):
            sys.exit(1)
    except (OSError, ProbeFailed) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

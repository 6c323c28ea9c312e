"""Cold start of each function: import time under the functions framework, and memory.

Prints a table, then one JSON line. The bars are 0.5 s and 120 MB. Each figure is the median of
several fresh processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5
SECONDS_BAR, MEGABYTES_BAR = 0.5, 120

PROBE = """
import resource, sys, time
began = time.perf_counter()
import functions_framework
framework = time.perf_counter() - began
functions_framework.create_app(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - began
print(framework, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure(name: str) -> tuple[float, float, float]:
    """Return the import seconds of the framework, those in total, and the peak resident MB."""
    source = ROOT / "functions" / name / "main.py"
    runs = []
    for _ in range(RUNS):
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", PROBE, name, str(source)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"LOWTIDE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"},
        )
        runs.append(tuple(map(float, done.stdout.split())))
    framework, seconds, megabytes = (
        statistics.median(column) for column in zip(*runs, strict=True)
    )
    return framework, seconds, megabytes


def main() -> None:
    """Measure every function; exit with 1 if one is over a bar."""
    figures = {}
    print(f"{'function':16}{'seconds':>9}{'framework':>11}{'x framework':>13}{'MB':>7}")
    for source in sorted(ROOT.glob("functions/*/main.py")):
        name = source.parent.name
        framework, seconds, megabytes = measure(name)
        figures[name] = {"seconds": round(seconds, 3), "megabytes": round(megabytes, 1)}
        ratio = seconds / framework
        print(f"{name:16}{seconds:9.3f}{framework:11.3f}{ratio:13.2f}{megabytes:7.1f}")
    over = [
        name
        for name, found in figures.items()
        if found["seconds"] > SECONDS_BAR or found["megabytes"] > MEGABYTES_BAR
    ]
    print(json.dumps({"functions": figures, "over_bar": over}))
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()

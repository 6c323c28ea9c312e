"""What ended batches leave behind: tick, landing page and queues page after ten of them, without a vacuum.

    python -m bench.dead_rows [--batches N] [--lines N]

The batches are claimed and settled in sets of 2,000 by one worker; autovacuum is off, so that every
dead row and index entry stays. The same queries run before the first batch, after the last, and
after a VACUUM. Ends with one JSON line; exits with 1 above the bar.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

from bench.queue import STEPS, together
from bench.stage import Stage
from lowtide.app import App
from lowtide.database.connections import connect
from lowtide.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

BAR, RUNS = 1.2, 60
CLOSE = """UPDATE batches SET status = 'completed', completed = total, drained_at = now(),
  completed_at = now() WHERE status <> 'completed'"""


def _milliseconds(action: Callable[[], object]) -> float:
    """Return the median of runs."""
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def figures(app: App) -> dict[str, float]:
    """Return the milliseconds of each action."""
    return {
        "tick": _milliseconds(app.scheduler.tick),
        "landing page": _milliseconds(lambda: app.snapshots.read(for_metrics=False)),
        "queues page": _milliseconds(app.pools.standings),
    }


def drain(stage: Stage, lines: int) -> None:
    """Queue a batch, drain it, and close it."""
    stage.measured(STEPS, "fill", str(lines), "1", "1", "1")
    with together(stage, 1, "drain", "2000", "60"):
        pass
    worker = connect(stage.url("worker"))
    with worker.begin() as connection:
        connection.execute(text(CLOSE))
    worker.dispose()


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--lines", type=int, default=50_000)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Stage(Path(folder), {"autovacuum": "off"}) as stage,
    ):
        os.environ.update(
            {k: v for k, v in stage.environment("worker").items() if k.startswith("LOWTIDE_")}
        )
        app, owner = App(read_settings()), connect(stage.url("owner"))
        drain(stage, 1000)
        with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE)"))
            before = figures(app)
            for _ in range(given.batches):
                drain(stage, given.lines)
            after = figures(app)
            connection.execute(text("VACUUM (ANALYZE)"))
        vacuumed = figures(app)
        owner.dispose()
    ratios = {name: round(after[name] / before[name], 2) for name in before}
    for name, ratio in ratios.items():
        print(
            f"{name:13} {before[name]:6.1f} ms, after {given.batches} batches {after[name]:6.1f} ms "
            f"({ratio:.2f}), vacuumed {vacuumed[name]:6.1f} ms"
        )
    missed = [f"{name}: {ratio}" for name, ratio in ratios.items() if ratio > BAR]
    print(json.dumps({"before": before, "after": after, "vacuumed": vacuumed, "missed": missed}))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()

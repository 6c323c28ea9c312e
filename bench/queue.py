"""The queue: lines claimed and completed a second, and how long a claim takes.

    python -m bench.queue [--quick] [--size N] [--seconds S] [--partitions N]

Several processes claim sets of requests and settle them with results of 300 bytes, as workers with
a no-op engine would, on an embedded PostgreSQL with durable settings. During `pinned` runs an open
transaction keeps dead rows from being vacuumed. The tables are vacuumed after each fill, which is
not part of the queue's work. References of the same run: a bare COPY of the same results, and
PGQueuer (dequeue and log, no results), if installed. Ends with one JSON line; exits with 1 if a
figure misses its bar.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import text

from bench.stage import ROOT, Stage
from lowtide.database.connections import connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Engine

STEPS = "bench.queue_steps"
EMPTIED = "batches, requests, queued_runs, claimed_runs, results, tallies, workers, outbox"
RATE_BAR, HELD_BAR, FLEETS_BAR = 106_000, 0.85, 0.95
SMALL, MIDDLE, LARGE, HUGE = 50_000, 200_000, 1_000_000, 5_000_000
HELD_RUNS = 5
FLEETS, PAIRS = 50, 10
PEER_WORKERS = 4


def scenarios(*, quick: bool) -> list[dict[str, Any]]:
    """Return the scenarios; the first is the baseline of the others.

    Next come pairs of one fleet and many, whose first one alternates: rates of a machine drift by
    more than the difference.
    """
    plain = {
        "lines": SMALL, "workers": 4, "pinned": False, "batches": 1, "tenants": 1, "fleets": 1,
    }  # fmt: skip
    many = plain | {"fleets": FLEETS}
    if quick:
        return [plain, plain | {"pinned": True}]
    return [
        plain,
        *[many, plain, plain, many] * (PAIRS // 2),
        *(plain | {"workers": workers} for workers in (1, 2, 8, 16)),
        plain | {"pinned": True},
        plain | {"batches": 100, "tenants": 4},
        plain | {"lines": MIDDLE},
        *[plain | {"lines": LARGE, "batches": 20}] * HELD_RUNS,
        *[plain | {"lines": LARGE, "batches": 20, "pinned": True}] * HELD_RUNS,
        *[plain | {"lines": HUGE, "batches": 100}] * HELD_RUNS,
    ]


def measure(
    stage: Stage, owner: Engine, what: dict[str, Any], size: int, seconds: float
) -> dict[str, Any]:
    """Fill an empty queue and drain it."""
    with owner.begin() as connection:
        connection.execute(text(f"TRUNCATE {EMPTIED}"))
    stage.measured(
        STEPS, "fill", *(str(what[key]) for key in ("lines", "batches", "tenants", "fleets"))
    )
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) requests, queued_runs, batches"))
    with pinned(owner) if what["pinned"] else nothing():
        before = server_seconds(stage)
        with together(stage, what["workers"], "drain", str(size), str(seconds)) as found:
            server = server_seconds(stage) - before
    lines = sum(run["lines"] for run in found)
    waits = sorted(wait for run in found for wait in run["waits"])
    return what | {
        "rate": round(lines / max(run["seconds"] for run in found)),
        "claim_p50_ms": round(statistics.median(waits) * 1000, 1),
        "claim_p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 1),
        "client_us_a_line": round(sum(run["cpu"] for run in found) / lines * 1e6, 1),
        "server_us_a_line": round(server / lines * 1e6, 1),
        "drained": lines,
    }


def partition(worker: Engine, days: int) -> None:
    """Make partitions of as many days as a database has after a month, in the days to come."""
    with worker.begin() as connection:
        connection.execute(
            text(
                "SELECT make_partitions(first_id(current_date + n)) FROM generate_series(1, :days - 1) n"
            ),
            {"days": days},
        )


@contextmanager
def together(
    stage: Stage, workers: int, *arguments: str, steps: str = STEPS
) -> Iterator[list[dict[str, Any]]]:
    """Run a step in several processes that start at the same time and live until the block ends.

    The CPU time of a server process is lost once its connection is closed.
    """
    processes = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", steps, *arguments],
            env=stage.environment("worker"),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(workers)
    ]
    for process in processes:
        if _line(process) != "ready\n":
            raise SystemExit("A process did not start.")
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    yield [json.loads(_line(process)) for process in processes]
    for process in processes:
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@contextmanager
def pinned(owner: Engine) -> Iterator[None]:
    """Keep a snapshot open, as a backup or a stuck session does."""
    with owner.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(text("SELECT count(*) FROM batches"))
        yield


@contextmanager
def nothing() -> Iterator[None]:
    """Do nothing."""
    yield


def server_seconds(stage: Stage) -> float:
    """Return the CPU seconds of the server's running processes."""
    used = 0.0
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "postgres" and process.cwd() == str(stage.server.cluster.folder):
            times = process.cpu_times()
            used += times.user + times.system
    return used


def copied(owner: Engine, worker: Engine) -> int:
    """Return the rows per second of a bare COPY of the results into a table of the same shape."""
    rows = io.BytesIO()
    with owner.begin() as connection:
        connection.execute(text("CREATE TABLE bare_results (LIKE results INCLUDING ALL)"))
    with worker.begin() as connection:
        cursor: Any = connection.connection.cursor()
        cursor.execute("COPY (SELECT * FROM results) TO STDOUT", stream=rows)
    content = rows.getvalue()
    blocks = (content[start : start + 65536] for start in range(0, len(content), 65536))
    began = time.perf_counter()
    with owner.begin() as connection:
        cursor = connection.connection.cursor()
        cursor.execute("COPY bare_results FROM STDIN", stream=blocks)
    return round(content.count(b"\n") / (time.perf_counter() - began))


def peer(stage: Stage, size: int, seconds: float) -> int | None:
    """Return the jobs per second of PGQueuer on the same server; None if it is not installed."""
    if find_spec("pgqueuer") is None or find_spec("asyncpg") is None:
        return None
    url = stage.url("owner")
    stage.measured(STEPS, "pgqueuer-fill", url, str(SMALL))
    with together(stage, PEER_WORKERS, "pgqueuer-drain", url, str(size), str(seconds)) as found:
        rate: float = sum(run["lines"] for run in found) / max(run["seconds"] for run in found)
        return round(rate)


def fleets_ratio(runs: Sequence[dict[str, Any]]) -> float | None:
    """Return the rate beside many other fleets as a share of the plain one's, the median of pairs."""
    paired = runs[1 : 2 * PAIRS + 1]
    if len(paired) < 2 * PAIRS:
        return None
    many = [run["rate"] for run in paired if run["fleets"] > 1]
    plain = [run["rate"] for run in paired if run["fleets"] == 1]
    ratios = [ours / theirs for ours, theirs in zip(many, plain, strict=True)]
    return float(statistics.median(ratios))


def plain_rate(runs: Sequence[dict[str, Any]]) -> float:
    """Return the median rate of all runs like the first one."""
    what = ("lines", "batches", "fleets", "workers", "pinned")
    return float(
        statistics.median(
            run["rate"] for run in runs if all(run[name] == runs[0][name] for name in what)
        )
    )


def show(runs: Sequence[dict[str, Any]], copy: int, pgqueuer: int | None) -> None:
    """Print a table."""
    plain = plain_rate(runs)
    print(
        f"{'requests':>9} {'batches':>7} {'tenants':>7} {'fleets':>6} {'workers':>7} {'pinned':>6} {'req/s':>8} "
        f"{'of 50k':>6} {'claim p50':>10} {'p99':>9} {'client':>10} {'server':>10}"
    )
    for run in runs:
        print(
            f"{run['lines']:>9} {run['batches']:>7} {run['tenants']:>7} {run['fleets']:>6} {run['workers']:>7} "
            f"{'yes' if run['pinned'] else 'no':>6} {run['rate']:>8} "
            f"{run['rate'] / plain:>6.2f} {run['claim_p50_ms']:>7.1f} ms "
            f"{run['claim_p99_ms']:>6.1f} ms {run['client_us_a_line']:>7.1f} us "
            f"{run['server_us_a_line']:>7.1f} us"
        )
    print(f"bare COPY of the results: {copy} rows/s, {plain / copy:.2f} of it")
    if pgqueuer is None:
        print("PGQueuer is not installed: pip install pgqueuer asyncpg")
    else:
        print(f"PGQueuer, {PEER_WORKERS} workers: {pgqueuer}/s, {plain / pgqueuer:.1f} x")


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="only 50,000 requests")
    parser.add_argument("--size", type=int, default=2000, help="requests per claim")
    parser.add_argument("--seconds", type=float, default=10.0, help="max duration of a drain")
    parser.add_argument("--partitions", type=int, default=40, help="days with a partition")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        owner, worker = connect(stage.url("owner")), connect(stage.url("worker"))
        partition(worker, given.partitions)
        runs, copy = [], 0
        for what in scenarios(quick=given.quick):
            runs.append(measure(stage, owner, what, given.size, given.seconds))
            copy = copy or copied(owner, worker)
            print(json.dumps(runs[-1]), file=sys.stderr)
        pgqueuer = peer(stage, given.size, given.seconds)
        owner.dispose()
        worker.dispose()
    show(runs, copy, pgqueuer)
    plain = plain_rate(runs)
    held = [run["rate"] / plain for run in runs if run["pinned"] or run["lines"] >= LARGE]
    fleets = fleets_ratio(runs)
    missed = [
        *(
            [f"{fleets:.2f} of one fleet at {FLEETS}, below the threshold of {FLEETS_BAR}"]
            if fleets is not None and fleets < FLEETS_BAR
            else []
        ),
        *(
            [f"{plain:.0f} requests/s, below the threshold of {RATE_BAR}"]
            if plain < RATE_BAR
            else []
        ),
        *(
            f"{ratio:.2f} of the plain rate, below the threshold of {HELD_BAR}"
            for ratio in held
            if ratio < HELD_BAR
        ),
    ]
    print(
        json.dumps(
            {"runs": runs, "fleets_ratio": fleets, "copy_rate": copy, "pgqueuer_rate": pgqueuer, "plain_rate": plain,
             "size": given.size, "missed": missed}
        )
    )  # fmt: skip
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()

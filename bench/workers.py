"""Whole workers: requests per second with the engine that takes no time, and where the time goes.

    python -m bench.workers [--processes 1,2,4] [--lines N] [--runs N] [--profile FILE]

Each run splits a file of 600-byte requests, and drains it with the shipped worker and its default
settings in one to four processes, as functions run it: claims, reads of the input, the event loop,
settlement. Answers have 300 bytes. Prints CPU microseconds per request of the workers and of the
server, and bytes of WAL per request. Ends with one JSON line; exits with 1 below a bar.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from bench.batch_files import write_batch_file
from bench.queue import server_seconds, together
from bench.stage import Stage
from lowtide.app import App
from lowtide.core.pools import Pool
from lowtide.database.connections import connect
from lowtide.engines import model
from lowtide.engines.outcomes import Answered, Usage
from lowtide.settings import read_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

INGEST, STEPS = "bench.ingest_steps", "bench.workers"
LINE_BYTES = 600
RATE_BAR, WAL_BAR, CLIENT_BAR = 70_000, 600, 12
ANSWER = Answered(
    200,
    json.dumps({"object": "chat.completion", "text": "x" * 260}).encode(),
    "chatcmpl-123456",
    Usage(20, 40),
)
LEFT = """SELECT (SELECT count(*) FROM (SELECT FROM queued_runs LIMIT 1) q)
  + (SELECT count(*) FROM (SELECT FROM claimed_runs LIMIT 1) c)"""
WAL = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"


def work(profile: str) -> dict[str, float]:
    """Run a worker in this process until the queue is empty."""
    model.ANSWER = ANSWER  # type: ignore[misc]
    app = App(read_settings(), name="infer_spot")
    worker, engine = app.build_worker(Pool.SPOT), app.database
    ended = 0.0

    def watch() -> None:
        nonlocal ended
        left = 1
        while left:
            time.sleep(0.02)
            with engine.begin() as connection:
                left = connection.execute(text(LEFT)).scalar_one()
        ended = time.perf_counter()
        worker.stop()

    gc.freeze()  # as lowtide.serving does
    print("ready", flush=True)
    sys.stdin.readline()
    threading.Thread(target=watch).start()
    began, used = time.perf_counter(), time.process_time()
    profiler = cProfile.Profile() if profile else None
    if profiler is not None:
        profiler.runcall(asyncio.run, worker.run())
        profiler.dump_stats(profile)
    else:
        asyncio.run(worker.run())
    return {"seconds": ended - began, "cpu": time.process_time() - used}


def measure(stage: Stage, owner: Engine, file: str, lines: int, processes: int) -> dict[str, Any]:
    """Queue the file's requests, and drain them."""
    created = stage.measured(INGEST, "create", file, role="api")["batch"]
    stage.measured(INGEST, "queue", created)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) requests, queued_runs, claimed_runs, batches"))
        wal = connection.execute(text(WAL)).scalar_one()
        before = server_seconds(stage)
        with together(stage, processes, "work", "", steps=STEPS) as found:
            server = server_seconds(stage) - before
        wal = connection.execute(text(WAL)).scalar_one() - wal
    return {
        "processes": processes,
        "rate": round(lines / max(run["seconds"] for run in found)),
        "client_us": round(sum(run["cpu"] for run in found) / lines * 1e6, 1),
        "server_us": round(server / lines * 1e6, 1),
        "wal_bytes": round(float(wal) / lines),
    }


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", default="", help="a file for the profile of one process")
    given = parser.parse_args()
    os.environ["LOWTIDE_ENGINE"] = "noop"
    runs: dict[int, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        # The database server's own user must be able to traverse the directory.
        Path(folder).chmod(0o755)
        path, stage_folder = Path(folder) / "input.jsonl", Path(folder) / "stage"
        write_batch_file(path, given.lines, LINE_BYTES)
        stage_folder.mkdir()
        with Stage(stage_folder, variables={"LOWTIDE_ENGINE": "noop"}) as stage:
            owner = connect(stage.url("owner"))
            file = stage.measured(INGEST, "upload", str(path), role="api")["file"]
            for _ in range(given.runs):
                for processes in map(int, given.processes.split(",")):
                    runs.setdefault(processes, []).append(
                        measure(stage, owner, file, given.lines, processes)
                    )
                    print(json.dumps(runs[processes][-1]), file=sys.stderr)
            if given.profile:
                created = stage.measured(INGEST, "create", file, role="api")["batch"]
                stage.measured(INGEST, "queue", created)
                with together(stage, 1, "work", given.profile, steps=STEPS) as found:
                    print(json.dumps(found))
            owner.dispose()
    medians = {
        processes: {name: statistics.median(run[name] for run in those) for name in those[0]}
        for processes, those in runs.items()
    }
    print(f"{'processes':>9} {'req/s':>8} {'client':>9} {'server':>9} {'WAL':>7}")
    for processes, run in medians.items():
        print(
            f"{processes:>9} {run['rate']:>8.0f} {run['client_us']:>6.1f} us {run['server_us']:>6.1f} us "
            f"{run['wal_bytes']:>5.0f} B"
        )
    best = max((run["rate"] for n, run in medians.items() if n > 1), default=0)
    missed = [name for name, is_missed in {
        f"{best:.0f} requests/s of {RATE_BAR}": best < RATE_BAR,
        f"more than {WAL_BAR} bytes of WAL": any(r["wal_bytes"] > WAL_BAR for r in medians.values()),
        f"more than {CLIENT_BAR} us of client": medians[min(medians)]["client_us"] > CLIENT_BAR,
    }.items() if is_missed]  # fmt: skip
    print(json.dumps({"runs": runs, "missed": missed}))
    sys.exit(bool(missed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        print(json.dumps(work(sys.argv[2])), flush=True)
        sys.stdin.readline()
    else:
        main()

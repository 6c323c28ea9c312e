"""What traces cost a worker: lines drained through a real worker and the engine that takes no time.

    python -m bench.tracing [--lines N] [--runs N]

Three arms in turn, each run in a process of its own: `bare`, without any of the code that traces;
`off`, as shipped; `on`, with a collector that takes every span. Once with a worker's default settings,
which claims few lines at a time, once with large sets. Compared by the CPU seconds of the worker's
process, which its neighbours on the machine disturb less than the wall clock. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from sqlalchemy import text

from bench.batch_files import write_batch_file
from bench.stage import Stage
from lowtide.app import App
from lowtide.core.pools import Pool
from lowtide.settings import read_settings
from lowtide.worker import runner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STEPS = "bench.ingest_steps"
LINE_BYTES = 600
SIZES: dict[str, Mapping[str, str]] = {
    "default": {},
    "large sets": {
        "LOWTIDE_WORKER_CONCURRENCY": "400",
        "LOWTIDE_WORKER_PREFETCH": "800",
    },
}
LEFT = "SELECT (SELECT count(*) FROM queue) + (SELECT count(*) FROM claims)"


class Nothing:
    """A stand-in for the spans of a set that records nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def trace_of(self, _: object) -> None:
        """Return no trace."""

    def add(self, _: object) -> None:
        """Count nothing."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run the block."""
        yield


def drain(arm: str) -> dict[str, float]:
    """Run a worker in this process until the queue is empty; return its seconds."""
    if arm == "bare":
        patch.object(runner, "SetSpans", Nothing).start()
    app = App(read_settings(), name="infer_spot")
    worker, engine = app.build_worker(Pool.SPOT), app.database

    def watch() -> None:
        left = 1
        while left:
            time.sleep(0.02)
            with engine.begin() as connection:
                left = connection.execute(text(LEFT)).scalar_one()
        worker.stop()

    threading.Thread(target=watch).start()
    began, used = time.perf_counter(), time.process_time()
    asyncio.run(worker.run())
    app.tracer.close(10)
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - used}


@contextmanager
def collector() -> Iterator[str]:
    """Run a collector that discards every request; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(stage: Stage, file: str, arm: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """Queue the file's requests, and drain them in a separate process."""
    created = stage.measured(STEPS, "create", file, role="api")["batch"]
    stage.measured(STEPS, "queue", created)
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bench.tracing", "drain", arm],
        env={**stage.environment("worker"), "LOWTIDE_ENGINE": "noop", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run all arms in turn, and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, collector() as url:
        # The database server's own user must be able to traverse the directory.
        Path(folder).chmod(0o755)
        path = Path(folder) / "input.jsonl"
        write_batch_file(path, options.lines, LINE_BYTES)
        arms = {"bare": {}, "off": {}, "on": {"OTEL_EXPORTER_OTLP_ENDPOINT": url}}
        stage_folder = Path(folder) / "stage"
        stage_folder.mkdir()
        with Stage(stage_folder) as stage:
            file = stage.measured(STEPS, "upload", str(path), role="api")["file"]
            for size, settings in SIZES.items():
                found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
                for _ in range(options.runs):
                    for arm, environment in arms.items():
                        found[arm].append(run(stage, file, arm, {**settings, **environment}))
                for arm, runs in found.items():
                    cpu = statistics.median(one["cpu"] for one in runs)
                    seconds = statistics.median(one["seconds"] for one in runs)
                    figures[f"{size}, {arm}"] = {
                        "cpu_us_a_line": round(1e6 * cpu / options.lines, 1),
                        "lines_a_second": round(options.lines / seconds),
                    }
                    print(f"{size:12}{arm:6}{1e6 * cpu / options.lines:8.1f} us CPU per request")
    print(json.dumps({"lines": options.lines, "runs": options.runs, **figures}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["drain"]:
        print(json.dumps(drain(sys.argv[2])))
    else:
        os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
        main()

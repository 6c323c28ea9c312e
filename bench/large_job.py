"""One batch of millions of requests through the real functions, beside many of 50,000.

    python -m bench.large_job [--lines 5000000] [--small 20] [--line-bytes 220]

`lowtide up` with the no-op engine and two spot workers. Twenty batches of 50,000 are the reference.
Their steps run apart, as do those of the large batch: the pools are paused until all is split. Then
the large batch runs again as a user would run it, with split and workers side by side. The files are
uploaded in parts by the official client. Prints the rates of split, drain and finalize, the time to
the first running request, the size of the database (before, the largest, after), and the peak
resident memory of every process. Ends with one JSON line; exits with 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from sqlalchemy import text

from bench.batch_files import write_batch_file
from bench.stage import peak_megabytes
from lowtide.batches.model import FINAL_STATUSES
from lowtide.cli.client import open_client
from lowtide.cli.pools import pause_pool, resume_pool
from lowtide.core.pools import Pool
from lowtide.database.connections import connect
from lowtide.local import runtime
from lowtide.local.options import Options
from lowtide.local.ports import free_port

if TYPE_CHECKING:
    from openai import OpenAI
    from sqlalchemy import Engine, TextClause

SMALL = 50_000
RATIO_BAR, MEMORY_BAR_MB, FIRST_BAR_S = 0.8, 300, 5.0
PART_BYTES = 64 << 20
SETTINGS = {
    "LOWTIDE_ENGINE": "noop",
    "LOWTIDE_MAX_BATCH_LINES": "20000000",
    "LOWTIDE_MAX_FILE_BYTES": "80000000000",
    "LOWTIDE_SPOT_REPLICAS": "2",
    "LOWTIDE_WORKER_CONCURRENCY": "400",
    "LOWTIDE_WORKER_PREFETCH": "800",
    "LOWTIDE_LOG_FORMAT": "text",
}
TIMES = text("""
SELECT extract(epoch FROM min(started) - min(created_at)) AS first,
  extract(epoch FROM max(split) - min(created_at)) AS split,
  extract(epoch FROM max(finished) - min(started)) AS drain,
  sum(extract(epoch FROM completed_at - drained_at)) / count(*) AS finalize,
  extract(epoch FROM max(completed_at) - min(created_at)) AS total
FROM batches b
CROSS JOIN LATERAL (SELECT max(split_at) AS split FROM segments WHERE batch_id = b.id) s
CROSS JOIN LATERAL (
  SELECT min(started_at) AS started, max(finished_at) AS finished FROM results
  WHERE batch_id = b.id) r
WHERE id = ANY(cast(:batches AS uuid[]))
""")
TO_SPLIT = text("""
SELECT count(*) FROM batches b WHERE id = ANY(cast(:batches AS uuid[])) AND (
  status = 'validating' OR EXISTS (SELECT FROM segments WHERE batch_id = b.id AND split_at IS NULL))
""")
SIZE = text("SELECT pg_database_size(current_database())")


@dataclass
class Peaks:
    """The peak resident memory of each process by name in MB, and the database's largest size."""

    pid: int
    database: Engine
    memory: dict[str, float] = field(default_factory=dict)
    size: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Sample every half second until stopped."""
        while not self.stopped.wait(0.5):
            for process in psutil.Process(self.pid).children(recursive=True):
                self._sample(process)
            with self.database.begin() as connection:
                self.size = max(self.size, connection.execute(SIZE).scalar_one())

    def _sample(self, process: psutil.Process) -> None:
        try:
            name = process.environ().get("FUNCTION_TARGET") or process.name()
            peak = peak_megabytes(process.pid)
        except (psutil.Error, OSError, RuntimeError):
            return
        self.memory[name] = max(self.memory.get(name, 0.0), round(peak, 1))


@dataclass(frozen=True)
class Stack:
    """A running stack with its client and its database."""

    folder: Path
    client: OpenAI
    database: Engine

    def size(self) -> int:
        """Return the size of the database in bytes."""
        with self.database.begin() as connection:
            return int(connection.execute(SIZE).scalar_one())

    def upload(self, path: Path) -> str:
        """Upload a file in parts."""
        upload = self.client.uploads.upload_file_chunked(
            file=path, mime_type="application/jsonl", purpose="batch", part_size=PART_BYTES
        )
        assert upload.file is not None, upload
        return upload.file.id

    def run(self, file: str, lines: int, batches: int = 1, *, apart: bool = True) -> dict[str, Any]:
        """Run batches of one file; rates are in requests per second.

        Each step waits for the one before if they run `apart`.
        """
        if apart:
            for pool in Pool:
                pause_pool(pool, data_dir=self.folder)
        ids = [
            self.client.batches.create(
                input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
            ).id
            for _ in range(batches)
        ]
        named = {"batches": [batch.removeprefix("batch_") for batch in ids]}
        if apart:
            while self._row(TO_SPLIT, named)[0]:
                time.sleep(0.1)
            for pool in Pool:
                resume_pool(pool, data_dir=self.folder)
        for batch in ids:
            while (state := self.client.batches.retrieve(batch)).status not in FINAL_STATUSES:
                time.sleep(0.2)
            assert state.status == "completed", state
            assert state.request_counts is not None
            assert state.request_counts.completed == lines, state.request_counts
        row = self._row(TIMES, named)
        whole = lines * batches
        return {
            "lines": lines,
            "batches": batches,
            "first_s": round(float(row.first), 2),
            "split": round(whole / float(row.split)),
            "drain": round(whole / float(row.drain)),
            "finalize": round(lines / float(row.finalize)),
            "total": round(whole / float(row.total)),
        }

    def _row(self, statement: TextClause, values: dict[str, Any]) -> Any:
        with self.database.begin() as connection:
            return connection.execute(statement, values).one()


def measure(folder: Path, lines: int, batches: int, line_bytes: int) -> dict[str, Any]:
    """Run the batches of both sizes on one stack."""
    small, large = folder / "small.jsonl", folder / "large.jsonl"
    write_batch_file(small, SMALL, line_bytes)
    write_batch_file(large, lines, line_bytes)
    os.environ.update(SETTINGS)
    options = Options(data_dir=folder / "stack", port=free_port(), quiet=True)
    status = runtime.up_detached(options)
    split = next(process for process in status.processes if process.name.startswith("split"))
    database = connect(psutil.Process(split.pid).environ()["LOWTIDE_DATABASE_URL"], pool_size=2)
    stack = Stack(options.data_dir, open_client(status.base_url, status.api_key), database)
    peaks = Peaks(status.pid, database)
    watcher = threading.Thread(target=peaks.watch)
    try:
        file = stack.upload(small)
        stack.run(file, SMALL, apart=False)
        found = {"alone": stack.run(file, SMALL), "small": stack.run(file, SMALL, batches)}
        size = stack.size()
        watcher.start()
        began = time.perf_counter()
        file = stack.upload(large)
        upload_mb_s = round(large.stat().st_size / (time.perf_counter() - began) / 1e6)
        found["large"] = stack.run(file, lines)
        found["as a user"] = stack.run(file, lines, apart=False)
        peaks.stopped.set()
        watcher.join()
        sizes = [round(each / 1e6) for each in (size, peaks.size, stack.size())]
    finally:
        peaks.stopped.set()
        database.dispose()
        runtime.down(options.data_dir)
    peak_mb = dict(sorted(peaks.memory.items()))
    return {**found, "upload_mb_s": upload_mb_s, "peak_mb": peak_mb, "database_mb": sizes}


def missed(found: dict[str, Any]) -> list[str]:
    """Return the figures that miss their bars."""
    problems = []
    for step in ("split", "drain", "finalize"):
        reference = found["small"][step]
        ratio = found["large"][step] / reference
        print(f"{step}: {found['large'][step]} requests/s, {ratio:.2f} of {reference}")
        if ratio < RATIO_BAR:
            problems.append(f"{step} at {ratio:.2f} of the small batch, below {RATIO_BAR}")
    first = found["as a user"]["first_s"]
    print(f"as a user: {found['as a user']['total']} requests/s, the first request after {first} s")
    if first > FIRST_BAR_S:
        problems.append(f"first request after {first} s, over {FIRST_BAR_S}")
    problems += [
        f"{name} took {peak} MB, over {MEMORY_BAR_MB}"
        for name, peak in found["peak_mb"].items()
        if peak > MEMORY_BAR_MB and name != "postgres"
    ]
    return problems


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lines", type=int, default=5_000_000, help="requests of the large batch")
    parser.add_argument("--small", type=int, default=20, help=f"batches of {SMALL} requests")
    parser.add_argument("--line-bytes", type=int, default=220, help="bytes of each request")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-large-"))
    try:
        found = measure(folder, given.lines, given.small, given.line_bytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    problems = missed(found)
    for name, peak in found["peak_mb"].items():
        print(f"{name}: {peak} MB")
    print(f"database: {found['database_mb']} MB before, at most, and after")
    print(json.dumps({**found, "missed": problems}))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()

"""One batch of millions of requests through the real functions, beside one of 50,000.

    python -m bench.large_job [--lines 5000000] [--line-bytes 200]

`lowtide up` with the no-op engine and two spot workers. The small batch runs from zero workers, then
warm, then the large one, then the small one again: the better of the two warm runs is the
reference. Both files are uploaded in parts by the official client. Prints, for each batch, the rates
of upload, split, drain and finalize, the time to its first running request, the size of the database
(before, the largest, after), and the peak resident memory of every process. Ends with one JSON line;
exits with 1 if a figure misses its bar.
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
from lowtide.cli.client import open_client
from lowtide.database.connections import connect
from lowtide.local import runtime
from lowtide.local.options import Options
from lowtide.local.ports import free_port

if TYPE_CHECKING:
    from openai import OpenAI
    from sqlalchemy import Engine

SMALL = 50_000
RATIO_BAR, MEMORY_BAR_MB, FIRST_BAR_S = 0.8, 300, 5.0
PART_BYTES = 64 << 20
SETTINGS = {
    "LOWTIDE_ENGINE": "noop",
    "LOWTIDE_MAX_BATCH_LINES": "20000000",
    "LOWTIDE_MAX_FILE_BYTES": "100000000000",
    "LOWTIDE_SPOT_REPLICAS": "2",
    "LOWTIDE_WORKER_CONCURRENCY": "400",
    "LOWTIDE_WORKER_PREFETCH": "800",
    "LOWTIDE_WORKER_CLAIM_SIZE": "400",
    "LOWTIDE_WORKER_FLUSH_LINES": "400",
    "LOWTIDE_LOG_FORMAT": "text",
}
TIMES = text("""
SELECT extract(epoch FROM min(r.started_at) - b.created_at) AS first,
  extract(epoch FROM (SELECT max(split_at) FROM segments WHERE batch_id = b.id) - b.created_at) AS split,
  extract(epoch FROM max(r.finished_at) - min(r.started_at)) AS drain,
  extract(epoch FROM b.completed_at - b.drained_at) AS finalize
FROM batches b JOIN results r ON r.batch_id = b.id WHERE b.id = :batch GROUP BY b.id
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


def run(client: OpenAI, database: Engine, path: Path, lines: int) -> dict[str, Any]:
    """Run one batch; rates are in requests per second."""
    began = time.perf_counter()
    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=PART_BYTES
    )
    assert upload.file is not None, upload
    uploaded = time.perf_counter() - began
    batch = client.batches.create(
        input_file_id=upload.file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch
    assert batch.request_counts is not None
    assert batch.request_counts.completed == lines, batch.request_counts
    with database.begin() as connection:
        row = connection.execute(TIMES, {"batch": batch.id.removeprefix("batch_")}).one()
    return {
        "lines": lines,
        "first_s": round(float(row.first), 2),
        "upload": round(lines / uploaded),
        "split": round(lines / float(row.split)),
        "drain": round(lines / float(row.drain)),
        "finalize": round(lines / float(row.finalize)),
        "upload_mb_s": round(path.stat().st_size / uploaded / 1e6),
    }


def measure(folder: Path, lines: int, line_bytes: int) -> dict[str, Any]:
    """Run the batches of both sizes on one stack."""
    small, large = folder / "small.jsonl", folder / "large.jsonl"
    write_batch_file(small, SMALL, line_bytes)
    write_batch_file(large, lines, line_bytes)
    os.environ.update(SETTINGS)
    options = Options(data_dir=folder / "stack", port=free_port(), quiet=True)
    status = runtime.up_detached(options)
    split = next(process for process in status.processes if process.name.startswith("split"))
    database = connect(psutil.Process(split.pid).environ()["LOWTIDE_DATABASE_URL"], pool_size=2)
    peaks = Peaks(status.pid, database)
    try:
        client = open_client(status.base_url, status.api_key)
        run(client, database, small, SMALL)
        before = run(client, database, small, SMALL)
        with database.begin() as connection:
            size = connection.execute(SIZE).scalar_one()
        watcher = threading.Thread(target=peaks.watch)
        watcher.start()
        found = run(client, database, large, lines)
        peaks.stopped.set()
        watcher.join()
        with database.begin() as connection:
            after_size = connection.execute(SIZE).scalar_one()
        after = run(client, database, small, SMALL)
    finally:
        peaks.stopped.set()
        database.dispose()
        runtime.down(options.data_dir)
    return {
        "small": [before, after],
        "large": found,
        "peak_mb": dict(sorted(peaks.memory.items())),
        "database_mb": [round(size / 1e6) for size in (size, peaks.size, after_size)],
    }


def missed(found: dict[str, Any]) -> list[str]:
    """Return the figures that miss their bars."""
    problems = []
    for step in ("split", "drain", "finalize"):
        reference = max(run[step] for run in found["small"])
        ratio = found["large"][step] / reference
        print(f"{step}: {found['large'][step]} requests/s, {ratio:.2f} of {reference}")
        if ratio < RATIO_BAR:
            problems.append(f"{step} at {ratio:.2f} of the small batch, below {RATIO_BAR}")
    if found["large"]["first_s"] > FIRST_BAR_S:
        problems.append(f"first request after {found['large']['first_s']} s, over {FIRST_BAR_S}")
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
    parser.add_argument("--line-bytes", type=int, default=220, help="bytes of each request")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-large-"))
    try:
        found = measure(folder, given.lines, given.line_bytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    problems = missed(found)
    for name, peak in found["peak_mb"].items():
        print(f"{name}: {peak} MB")
    print(f"database: {found['database_mb']} MB before, at most, and after")
    print(f"first request of the large batch: {found['large']['first_s']} s after its creation")
    print(json.dumps({**found, "missed": problems}))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()

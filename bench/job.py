"""The whole job through the real functions, and a worker against an upstream of fixed latency.

    python -m bench.job [--lines N] [--requests N] [--quick]

The job: `lowtide up` with the no-op engine, timed from `POST /v1/batches` to the last byte of the
output file, first from zero workers, then while these workers are still up. The upstream: one
worker under gunicorn against a server that answers after 50 ms, 128 requests in flight, beside a
bare asyncio client of the same server; the worker's rate counts from the first claim to the last
result. Ends with one JSON line; exits with 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from bench.batch_files import write_batch_file
from bench.stage import Stage
from lowtide.cli.client import open_client
from lowtide.database.connections import connect
from lowtide.local import runtime
from lowtide.local.options import Options
from lowtide.local.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai import OpenAI

UPSTREAM = "bench.upstream"
STEPS = "bench.ingest_steps"
LINE_BYTES = 600
LATENCY, IN_FLIGHT = 0.05, 128
JOB_BAR, UPSTREAM_BAR = 12_000, 0.95
FAST_WORKERS = {
    "LOWTIDE_ENGINE": "noop",
    "LOWTIDE_WORKER_CONCURRENCY": "400",
    "LOWTIDE_WORKER_PREFETCH": "800",
    "LOWTIDE_LOG_FORMAT": "text",
}
SPAN = """
SELECT count(*) AS lines, extract(epoch FROM max(finished_at) - min(started_at)) AS seconds
FROM results WHERE batch_id = :batch
"""


def job(client: OpenAI, path: Path, out: Path) -> dict[str, float]:
    """Run one batch; the time excludes the upload."""
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    began = time.perf_counter()
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    ended = time.perf_counter()
    assert batch.status == "completed", batch
    assert batch.output_file_id is not None
    assert batch.request_counts is not None
    client.files.content(batch.output_file_id).write_to_file(out)
    seconds = time.perf_counter() - began
    assert out.read_bytes().count(b"\n") == batch.request_counts.total
    return {"seconds": seconds, "completed": ended - began, "lines": batch.request_counts.total}


def whole_job(folder: Path, lines: int, runs: int) -> dict[str, Any]:
    """Run batches through a local stack, the first from zero workers."""
    path = folder / "input.jsonl"
    write_batch_file(path, lines, LINE_BYTES)
    os.environ.update(FAST_WORKERS)
    options = Options(data_dir=folder / "stack", port=free_port(), quiet=True)
    status = runtime.up_detached(options)
    try:
        client = open_client(status.base_url, status.api_key)
        found = [job(client, path, folder / "output.jsonl") for _ in range(runs + 1)]
    finally:
        runtime.down(options.data_dir)
    warm = statistics.median(run["seconds"] for run in found[1:])
    return {
        "lines": lines,
        "from_zero_s": round(found[0]["seconds"], 2),
        "warm_s": round(warm, 2),
        "rate": round(lines / warm),
        "from_zero_rate": round(lines / found[0]["seconds"]),
    }


@contextmanager
def upstream() -> Iterator[int]:
    """Serve the upstream; yield its port."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", UPSTREAM, "serve", str(LATENCY)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def against_upstream(folder: Path, requests: int) -> dict[str, Any]:
    """Measure one worker, and the bare client before and after it."""
    path, stage_folder = folder / "upstream.jsonl", folder / "stage"
    stage_folder.mkdir()
    write_batch_file(path, requests, LINE_BYTES)
    with upstream() as port, Stage(stage_folder) as stage:
        settings = {
            "LOWTIDE_ENGINE": "openai",
            "LOWTIDE_ENGINE_URL": f"http://127.0.0.1:{port}",
            "LOWTIDE_WORKER_CONCURRENCY": str(IN_FLIGHT),
            "LOWTIDE_WORKER_PREFETCH": str(IN_FLIGHT),
        }
        before = bare(port, requests)
        file = stage.measured(STEPS, "upload", str(path), role="api")["file"]
        created = stage.measured(STEPS, "create", file, role="api")["batch"]
        batch = stage.measured(STEPS, "queue", created)["batch"]
        worker = connect(stage.url("worker"))
        try:
            with stage.function("infer_spot", "worker", signature="cloudevent", **settings):
                found = until_done(worker, batch, requests)
        finally:
            worker.dispose()
        after = bare(port, requests)
    rate, reference = requests / found, statistics.mean([before, after])
    return {
        "requests": requests,
        "rate": round(rate),
        "bare_asyncio": round(reference),
        "ratio": round(rate / reference, 3),
        "limit": round(IN_FLIGHT / LATENCY),
    }


def bare(port: int, requests: int) -> float:
    """Return the bare client's requests per second."""
    command = [sys.executable, "-m", UPSTREAM, "ask", str(port), str(requests), str(IN_FLIGHT)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found = json.loads(done.stdout)
    return float(found["requests"] / found["seconds"])


def until_done(engine: Any, batch: str, lines: int) -> float:
    """Return the seconds from the first claim to the last result."""
    while True:
        time.sleep(0.2)
        with engine.begin() as connection:
            row = connection.execute(text(SPAN), {"batch": batch}).one()
        if row.lines == lines:
            return float(row.seconds)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lines", type=int, default=50_000, help="requests of the whole job")
    parser.add_argument("--requests", type=int, default=25_600, help="requests to the engine alone")
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of the whole job with warm workers"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of all sizes, one run")
    given = parser.parse_args()
    if given.quick:
        given.lines, given.requests, given.runs = given.lines // 10, given.requests // 10, 1
    folder = Path(tempfile.mkdtemp(prefix="bench-job-"))
    try:
        asked = against_upstream(folder, given.requests)
        print(
            f"engine of 50 ms, 128 in flight: {asked['rate']} requests/s, {asked['ratio']:.3f} of "
            f"a bare asyncio client ({asked['bare_asyncio']}/s; theoretical max {asked['limit']}/s)"
        )
        done = whole_job(folder, given.lines, given.runs)
        print(
            f"whole job, {done['lines']} requests: {done['warm_s']} s, {done['rate']} requests/s; "
            f"from zero workers {done['from_zero_s']} s, {done['from_zero_rate']} requests/s"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    missed = [
        *(
            [f"{done['rate']} requests/s, below the threshold of {JOB_BAR}"]
            if done["rate"] < JOB_BAR
            else []
        ),
        *(
            [f"ratio {asked['ratio']}, below the threshold of {UPSTREAM_BAR}"]
            if asked["ratio"] < UPSTREAM_BAR
            else []
        ),
    ]
    print(json.dumps({"job": done, "upstream": asked, "missed": missed}))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()

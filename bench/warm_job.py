"""A batch on a warm worker from `POST` to `completed`, beside a bare client of the same engine.

    python -m bench.warm_job [--sizes 16,64,256,512] [--seconds N]

Engines batch continuously, over HTTP, with answers of varied length: see `bench.engine_server`.
`lowtide up` with untouched defaults runs a file of about `--seconds` of work, on a worker that has
run another batch before. At the same time, a bare asyncio client sends the same file to a second
engine of the same size, at its best concurrency: whatever else the machine does slows both. The
ratio is that of their seconds, the slow end of the last requests included. Ends with one JSON line;
exits with 1 if a ratio is below its bar.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.batch_files import write_batch_file
from bench.engine_load import LINE_BYTES, RATIO_BAR, SERVER, best_of, engine
from bench.engine_server import MEAN_TOKENS
from bench.real_engine import run_batch, stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WARM_UP_SECONDS = 8.0


@contextmanager
def sending(url: str, path: Path, in_flight: int) -> Iterator[Callable[[], float]]:
    """Send the requests of a file by the bare client; yield what waits for its seconds."""
    command = [sys.executable, "-m", SERVER, "send", url, str(path), str(in_flight)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            yield lambda: float(process.communicate()[0])
        finally:
            process.kill()


def measure(folder: Path, size: int, seconds: float) -> dict[str, Any]:
    """Measure both clients at an engine of this size."""
    batch, warm_up, prompts = (folder / f"{name}.jsonl" for name in ("batch", "warm-up", "bare"))
    write_batch_file(prompts, 2000, LINE_BYTES)
    best, in_flight = best_of(size, prompts)
    requests = round(best / MEAN_TOKENS * seconds)
    write_batch_file(batch, requests, LINE_BYTES)
    write_batch_file(warm_up, round(best / MEAN_TOKENS * WARM_UP_SECONDS), LINE_BYTES)
    with (
        engine(size) as server,
        engine(size) as other,
        stack(folder, server.url) as (client, _),
    ):
        run_batch(client, warm_up)
        before = server.timeline().samples[-1].completed
        with sending(other.url, batch, in_flight) as seconds_of:
            began, ended = run_batch(client, batch)
            bare = seconds_of()
        timeline = server.timeline()
    first = next(each.at for each in timeline.samples if each.at >= began and each.running)
    return {
        "requests": requests,
        "bare_in_flight": in_flight,
        "bare_s": round(bare, 2),
        "lowtide_s": round(ended - began, 2),
        "ratio": round(bare / (ended - began), 3),
        "before_first_request_s": round(first - began, 2),
        "after_last_answer_s": round(ended - timeline.completed(before + requests), 2),
    }


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default="16,64,256,512", help="sizes of the engines' batches")
    parser.add_argument("--seconds", type=float, default=45.0, help="length of each batch")
    given = parser.parse_args()
    runs: dict[int, dict[str, Any]] = {}
    for size in map(int, given.sizes.split(",")):
        folder = Path(tempfile.mkdtemp(prefix="bench-warm-job-"))
        try:
            found = runs[size] = measure(folder, size, given.seconds)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(
            f"{size:4} sequences, {found['requests']} requests: {found['lowtide_s']} s, "
            f"{found['ratio']:.3f} of a bare client ({found['bare_s']} s with "
            f"{found['bare_in_flight']} in flight); {found['before_first_request_s']} s before the first "
            f"request, {found['after_last_answer_s']} s after the last answer",
            flush=True,
        )
    missed = [f"{size}: {run['ratio']}" for size, run in runs.items() if run["ratio"] < RATIO_BAR]
    print(json.dumps({"engines": runs, "missed": missed}))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()

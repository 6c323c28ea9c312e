"""A worker with untouched defaults against engines of several sizes, beside a bare client.

    python -m bench.engine_load [--sizes 16,64,256,512] [--seconds N]
    python -m bench.engine_load --url URL --model NAME [--seconds N]

With `--url`, the engine is a running one: see `bench.real_engine`. Without, each engine batches continuously: a server of `bench.engine_server`, over HTTP, with answers of
varied length. The reference is a bare asyncio client at the best of several concurrencies. Both are
measured by the engine's own count of tokens: the ratio is the worker's rate, from when it settled
until its last requests, to the best of the bare client. It has settled once three seconds reach
0.97 of that. In the last run the engine's batch grows and shrinks again. Ends with one JSON line;
exits with 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.batch_files import write_batch_file
from bench.engine_server import HOST, MEAN_TOKENS
from bench.job import until_done
from bench.real_engine import compare
from bench.stage import Stage
from bench.timeline import Sample, Timeline
from lowtide.database.connections import connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERVER = "bench.engine_server"
STEPS = "bench.ingest_steps"
LINE_BYTES = 600
RATIO_BAR, SETTLED_BAR = 0.97, 60.0
TRIES = (1.0, 1.25, 2.0)
"""Concurrencies of the bare client, in sizes of the batch."""
TRY_SECONDS, WARM_SECONDS = 3.0, 1.3
SMALL, LARGE, PHASE_SECONDS = 64, 256, 9.0


class Engine:
    """A running engine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://{HOST}:{port}"

    def timeline(self) -> Timeline:
        """Return its samples so far."""
        with urllib.request.urlopen(f"{self.url}/timeline", timeout=10) as answer:  # noqa: S310
            return Timeline([Sample(*values) for values in json.load(answer)])

    def resize(self, size: int) -> float:
        """Change the size of its batch; return when."""
        request = urllib.request.Request(f"{self.url}/resize/{size}", method="POST")  # noqa: S310
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310
            return time.time()

    def bare(self, path: Path, numbers: Sequence[int]) -> list[float]:
        """Return the tokens per second of the bare client with each number in flight."""
        command = [sys.executable, "-m", SERVER, "ask", self.url, str(path), str(TRY_SECONDS)]
        done = subprocess.run(  # noqa: S603
            [*command, *map(str, numbers)], check=True, capture_output=True, text=True
        )
        timeline = self.timeline()
        return [
            timeline.rate(began + WARM_SECONDS, began + TRY_SECONDS - 0.2)
            for began in json.loads(done.stdout)
        ]


@contextmanager
def engine(size: int, blocks: int = 0) -> Iterator[Engine]:
    """Serve an engine of this size, with a prefix cache of so many blocks if there are any."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", SERVER, "serve", str(size), str(blocks)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Engine(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


def best_of(size: int, path: Path) -> tuple[float, int]:
    """Return the bare client's best rate at an engine of this size, and its number in flight."""
    numbers = [round(size * factor) for factor in TRIES]
    with engine(size) as server:
        return max(zip(server.bare(path, numbers), numbers, strict=True))


@contextmanager
def worker(stage: Stage, server: Engine, folder: Path, requests: int) -> Iterator[str]:
    """Run a worker with its defaults on a new batch; yield the batch's id."""
    path = folder / f"{requests}.jsonl"
    write_batch_file(path, requests, LINE_BYTES)
    created = stage.measured(STEPS, "submit", str(path), role="api")["batch"]
    batch = stage.measured(STEPS, "queue", created)["batch"]
    settings = {
        "LOWTIDE_ENGINE": "openai",
        "LOWTIDE_ENGINE_URL": server.url,
        "LOWTIDE_LOG_LEVEL": "warning",
    }
    with stage.function("infer_spot", "worker", signature="cloudevent", **settings):
        yield batch


def _wait(stage: Stage, batch: str, requests: int) -> None:
    database = connect(stage.url("worker"))
    try:
        until_done(database, batch, requests)
    finally:
        database.dispose()


def steady(stage: Stage, folder: Path, size: int, best: float, seconds: float) -> dict[str, Any]:
    """Measure the worker at one engine."""
    requests = round(best / MEAN_TOKENS * seconds)
    with engine(size) as server, worker(stage, server, folder, requests) as batch:
        _wait(stage, batch, requests)
        timeline = server.timeline()
    start = timeline.first()
    end = timeline.completed(max(1, requests - 2 * size))
    settled = timeline.reached(RATIO_BAR * best, start, end)
    rate = timeline.rate(start + (settled or 0.0), end)
    whole = timeline.rate(start, timeline.completed(requests))
    return {
        "requests": requests,
        "rate": round(rate),
        "ratio": round(rate / best, 3),
        "settled_s": None if settled is None else round(settled, 1),
        "whole_ratio": round(whole / best, 3),
    }


def changing(stage: Stage, folder: Path, small: float, large: float) -> dict[str, Any]:
    """Measure the worker at an engine whose batch grows and shrinks."""
    requests = round((2 * small + large) / MEAN_TOKENS * 2 * PHASE_SECONDS)
    with engine(SMALL) as server, worker(stage, server, folder, requests):
        time.sleep(PHASE_SECONDS)
        grown = server.resize(LARGE)
        time.sleep(PHASE_SECONDS)
        shrunk = server.resize(SMALL)
        time.sleep(PHASE_SECONDS)
        timeline = server.timeline()
    end = timeline.samples[-1].at
    grew = timeline.reached(RATIO_BAR * large, grown, shrunk)
    rates = {
        "grown_ratio": timeline.rate(grown + (grew or 0.0), shrunk) / large,
        "shrunk_ratio": timeline.rate(shrunk + 2.0, end) / small,
    }
    short = timeline.queue_short(shrunk, SMALL)
    return {
        "grown_settled_s": None if grew is None else round(grew, 1),
        "shrunk_settled_s": None if short is None else round(short, 1),
        **{name: round(ratio, 3) for name, ratio in rates.items()},
    }


def missed(runs: dict[int, dict[str, Any]], change: dict[str, Any]) -> list[str]:
    """Return the figures that miss their bars."""
    ratios = {f"{size} sequences": run["ratio"] for size, run in runs.items()}
    ratios |= {name: change[name] for name in ("grown_ratio", "shrunk_ratio")}
    times = {f"{size} sequences": run["settled_s"] for size, run in runs.items()}
    times |= {name: change[name] for name in ("grown_settled_s", "shrunk_settled_s")}
    return [
        *(f"{name}: ratio {ratio}" for name, ratio in ratios.items() if ratio < RATIO_BAR),
        *(
            f"{name}: settled after {seconds} s"
            for name, seconds in times.items()
            if seconds is None or seconds > SETTLED_BAR
        ),
    ]


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default="16,64,256,512", help="sizes of the engines' batches")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each run")
    parser.add_argument("--url", help="a running engine to measure instead")
    parser.add_argument("--model", help="the name of its model")
    given = parser.parse_args()
    if given.url:
        if not given.model:
            parser.error("--url needs --model")
        sys.exit(bool(compare(given.url, given.model, given.seconds)))
    sizes = [int(size) for size in given.sizes.split(",")]
    folder = Path(tempfile.mkdtemp(prefix="bench-engine-load-"))
    prompts = folder / "bare.jsonl"
    write_batch_file(prompts, 2000, LINE_BYTES)
    try:
        with Stage(folder) as stage:
            best: dict[int, float] = {}
            runs: dict[int, dict[str, Any]] = {}
            for size in sizes:
                best[size], in_flight = best_of(size, prompts)
                found = runs[size] = steady(stage, folder, size, best[size], given.seconds)
                print(
                    f"{size:4} sequences: {found['rate']} tokens/s, {found['ratio']:.3f} of a bare client "
                    f"({best[size]:.0f}/s with {in_flight} in flight), settled after "
                    f"{found['settled_s']} s; {found['whole_ratio']:.3f} over the whole run",
                    flush=True,
                )
            for size in (SMALL, LARGE):
                if size not in best:
                    best[size], _ = best_of(size, prompts)
            change = changing(stage, folder, best[SMALL], best[LARGE])
            print(
                f"from {SMALL} to {LARGE} sequences: settled after {change['grown_settled_s']} s, "
                f"{change['grown_ratio']:.3f} of a bare client; back: after "
                f"{change['shrunk_settled_s']} s, {change['shrunk_ratio']:.3f}"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    problems = missed(runs, change)
    print(json.dumps({"engines": runs, "change": change, "missed": problems}))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()

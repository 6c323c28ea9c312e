"""Lowtide with untouched defaults on a running engine, beside a bare client of the same engine.

The engine is vLLM or SGLang, whose own count of tokens is the measure; nothing else may use it
meanwhile. Answers vary in length: each request sets its `max_tokens` and ignores the end of the text.

- The bare client keeps a number of requests in flight; the best of several numbers counts.
- The bare client sends a file at its best number, before and after Lowtide: this is 1.00, and the
  difference of the two is the noise of the engine.
- Lowtide is a local stack, which runs the same file from zero workers, then on a warm one. Compared
  are the engine's rate while it is full, and the seconds from `POST /v1/batches` to `completed`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.parser import text_string_to_metric_families

from bench.timeline import Sample, Timeline
from lowtide.cli.client import open_client
from lowtide.local import runtime
from lowtide.local.options import Options
from lowtide.local.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from openai import OpenAI

CLIENT = "bench.engine_server"
NUMBERS: Final = (32, 64, 128, 256, 512, 1024)
"""Requests in flight of the bare client."""
TRY_SECONDS, WARM_SECONDS = 20.0, 8.0
SHORTEST, LONGEST = 16, 256
"""Bounds of an answer's tokens."""
MEAN_TOKENS: Final = (SHORTEST + LONGEST) / 2
WORDS: Final = 40
SAMPLE_SECONDS = 0.5
RATIO_BAR, SETTLED_BAR = 0.97, 60.0
WARM_RUNS = 2
SERIES: Final = {
    "tokens": ("vllm:generation_tokens_total", "sglang:generation_tokens_total"),
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    "completed": ("vllm:request_success_total", "sglang:num_requests_total"),
}
_SETTLED: Final = re.compile(r"worker\.concurrency_settled.*?limit\D+(\d+)")


class Engine:
    """A running engine, sampled in a thread of its own."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._samples: list[Sample] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Engine:
        self._samples.append(self._sample())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def version(self) -> str:
        """Return the version that vLLM states; empty if it does not."""
        try:
            return str(json.loads(self._get("/version"))["version"])
        except (OSError, ValueError, KeyError):
            return ""

    def since(self, began: float) -> Timeline:
        """Return the samples from a time on, with counts from there."""
        samples = [sample for sample in self._samples if sample.at >= began]
        first = samples[0]
        return Timeline(
            [
                replace(
                    sample,
                    tokens=sample.tokens - first.tokens,
                    completed=sample.completed - first.completed,
                )
                for sample in samples
            ]
        )

    def wait_until_idle(self) -> None:
        """Wait until nothing runs, in a sample from now on."""
        began = time.time()
        while (last := self._samples[-1]).at < began or last.running or last.waiting:
            time.sleep(SAMPLE_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_SECONDS):
            self._samples.append(self._sample())

    def _sample(self) -> Sample:
        totals = dict.fromkeys(SERIES, 0.0)
        text = self._get("/metrics").decode()
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                for figure, names in SERIES.items():
                    if one.name in names:
                        totals[figure] += one.value
        return Sample(time.time(), **{figure: round(total) for figure, total in totals.items()})

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:  # noqa: S310
            content: bytes = answer.read()
            return content


def write_requests(path: Path, model: str, requests: int) -> None:
    """Write a batch file; each answer has the length that its request asks for."""
    rng = random.Random(requests)  # noqa: S311
    words = ("tide", "rises", "slowly", "over", "grey", "sand", "harbour", "lights", "answer")
    with path.open("w", encoding="utf-8") as file:
        for number in range(requests):
            body = {
                "model": model,
                "messages": [{"role": "user", "content": " ".join(rng.choices(words, k=WORDS))}],
                "max_tokens": rng.randint(SHORTEST, LONGEST),
                "temperature": 0,
                "ignore_eos": True,
            }
            line = {"custom_id": f"request-{number}", "method": "POST"}
            file.write(json.dumps({**line, "url": "/v1/chat/completions", "body": body}) + "\n")


def bare(engine: Engine, path: Path) -> dict[int, float]:
    """Return the tokens per second of the bare client for each number in flight."""
    rates = {}
    for number in NUMBERS:
        (began,) = _client("ask", engine.url, str(path), str(TRY_SECONDS), str(number))
        end = began + TRY_SECONDS - 0.5
        rates[number] = engine.since(began).rate(began + WARM_SECONDS, end)
        print(f"bare client, {number:4} in flight: {rates[number]:.0f} tokens/s", flush=True)
        engine.wait_until_idle()
    return rates


def _client(*arguments: str) -> Any:
    command = [sys.executable, "-m", CLIENT, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return json.loads(done.stdout)


@contextmanager
def stack(folder: Path, url: str) -> Iterator[tuple[OpenAI, Path]]:
    """Start a local stack on the engine; yield a client of it, and its log."""
    for name in [name for name in os.environ if name.startswith("LOWTIDE_")]:
        del os.environ[name]
    os.environ |= {"LOWTIDE_ENGINE": "openai", "LOWTIDE_ENGINE_URL": url}
    options = Options(data_dir=folder / "stack", port=free_port(), quiet=True)
    status = runtime.up_detached(options)
    try:
        yield open_client(status.base_url, status.api_key), options.data_dir / runtime.LOG_NAME
    finally:
        runtime.down(options.data_dir)


def run_batch(client: OpenAI, path: Path) -> tuple[float, float]:
    """Run a batch; return the times of its POST and of its completion."""
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    began = time.time()
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    ended = time.time()
    counts = batch.request_counts
    assert batch.status == "completed", batch
    assert counts is not None, batch
    assert counts.failed == 0, counts
    return began, ended


def bare_run(engine: Engine, path: Path, requests: int, number: int) -> dict[str, float]:
    """Send the file once, with `number` in flight; return the seconds, and the rate while full."""
    engine.wait_until_idle()
    began = time.time()
    seconds = float(_client("send", engine.url, str(path), str(number)))
    timeline = engine.since(began)
    rate = timeline.rate(timeline.first(), timeline.completed(max(1, requests - 2 * number)))
    print(f"bare client, {requests} requests: {seconds:.2f} s, {rate:.0f} tokens/s", flush=True)
    return {"seconds": round(seconds, 2), "rate": round(rate)}


def lowtide_runs(
    engine: Engine, folder: Path, path: Path, requests: int, best: float
) -> tuple[list[dict[str, Any]], list[int]]:
    """Run the file from zero workers, then on a warm one; return what was measured, and limits.

    The rate is that from when the worker settled until the batch no longer fills the engine.
    """
    runs = []
    with stack(folder, engine.url) as (client, log):
        for _ in range(1 + WARM_RUNS):
            engine.wait_until_idle()
            began, ended = run_batch(client, path)
            timeline = engine.since(began)
            most = max(sample.running + sample.waiting for sample in timeline.samples)
            start, end = timeline.first(), timeline.completed(max(1, requests - 2 * most))
            settled = timeline.reached(RATIO_BAR * best, start, end)
            found = {
                "seconds": round(ended - began, 2),
                "rate": round(timeline.rate(start + (settled or 0.0), end)),
                "settled_s": None if settled is None else round(settled, 1),
                "most_in_engine": most,
            }
            runs.append(found)
            name = "on a warm worker" if runs[1:] else "from zero workers"
            print(f"Lowtide {name}: {json.dumps(found)}", flush=True)
        limits = [int(limit) for limit in _SETTLED.findall(log.read_text(errors="replace"))]
    return runs, limits


def missed(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the figures that miss their bars."""
    problems = [
        f"warm run {number}: {figure} {run[figure]}"
        for number, run in enumerate(runs[1:], 1)
        for figure in ("rate_ratio", "time_ratio")
        if run[figure] < RATIO_BAR
    ]
    settled = runs[0]["settled_s"]
    if settled is None or settled > SETTLED_BAR:
        problems.append(f"settled after {settled} s")
    return problems


def compare(url: str, model: str, seconds: float) -> Sequence[str]:
    """Measure both clients on a running engine, batches of about `seconds`; return what missed."""
    folder = Path(tempfile.mkdtemp(prefix="bench-real-engine-"))
    prompts, path = folder / "bare.jsonl", folder / "batch.jsonl"
    try:
        with Engine(url) as engine:
            write_requests(prompts, model, 4000)
            tries = bare(engine, prompts)
            number, best = max(tries.items(), key=lambda one: one[1])
            requests = round(best / MEAN_TOKENS * seconds)
            write_requests(path, model, requests)
            # Engines are not equally fast at all times: the reference is measured on both sides.
            references = [bare_run(engine, path, requests, number)]
            runs, limits = lowtide_runs(engine, folder, path, requests, references[0]["rate"])
            references.append(bare_run(engine, path, requests, number))
            version = engine.version()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rate = statistics.mean(one["rate"] for one in references)
    duration = statistics.mean(one["seconds"] for one in references)
    for run in runs:
        run["rate_ratio"] = round(run["rate"] / rate, 3)
        run["time_ratio"] = round(duration / run["seconds"], 3)
        print(f"Lowtide: rate {run['rate_ratio']:.3f}, time {run['time_ratio']:.3f} of bare")
    problems = missed(runs)
    print(
        json.dumps(
            {
                "version": version,
                "requests": requests,
                "bare_tries": {number: round(rate) for number, rate in tries.items()},
                "bare": references,
                "bare_in_flight": number,
                "lowtide": runs,
                "settled_at": limits,
                "missed": problems,
            }
        )
    )
    return problems

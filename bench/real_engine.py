"""Lowtide with untouched defaults on a running engine, beside a bare client of the same engine.

The engine is vLLM or SGLang, whose own count of tokens is the measure; nothing else may use it
meanwhile. Answers vary in length: each request sets its `max_tokens` and ignores the end of the text.

- The bare client keeps a number of requests in flight; the best of several numbers is 1.00.
- Lowtide is a local stack. The drain is the engine's rate on a warm worker, from when it settled
  until the batch no longer fills the engine.
- Times from `POST /v1/batches` to `completed` are compared with the bare client's time for the
  same file at its best number: both end with a batch that runs empty.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
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
TRY_SECONDS, WARM_SECONDS = 10.0, 4.0
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
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    ended = time.time()
    counts = batch.request_counts
    assert batch.status == "completed", batch
    assert counts is not None, batch
    assert counts.failed == 0, counts
    return began, ended


def drain(timeline: Timeline, best: float, requests: int) -> dict[str, Any]:
    """Return the rate from when the worker settled until the batch no longer fills the engine."""
    start = timeline.first()
    last = max(sample.running + sample.waiting for sample in timeline.samples)
    end = timeline.completed(max(1, requests - 2 * last))
    settled = timeline.reached(RATIO_BAR * best, start, end)
    rate = timeline.rate(start + (settled or 0.0), end)
    return {
        "drain": round(rate),
        "drain_ratio": round(rate / best, 3),
        "settled_s": None if settled is None else round(settled, 1),
        "most_in_engine": last,
    }


def lowtide(
    engine: Engine, folder: Path, path: Path, requests: int, best: float, bare_seconds: float
) -> dict[str, Any]:
    """Measure Lowtide from zero workers, then on a warm worker."""
    runs = []
    with stack(folder, engine.url) as (client, log):
        for _ in range(1 + WARM_RUNS):
            engine.wait_until_idle()
            began, ended = run_batch(client, path)
            found = drain(engine.since(began), best, requests)
            seconds = ended - began
            found |= {"seconds": round(seconds, 2), "ratio": round(bare_seconds / seconds, 3)}
            runs.append(found)
            name = "on a warm worker" if runs[1:] else "from zero workers"
            print(f"Lowtide {name}: {json.dumps(found)}", flush=True)
        limits = [int(limit) for limit in _SETTLED.findall(log.read_text(errors="replace"))]
    return {"from_zero": runs[0], "warm": runs[1:], "settled_at": limits}


def missed(found: dict[str, Any]) -> list[str]:
    """Return the figures that miss their bars."""
    problems = [
        f"warm run {number}: {figure} {run[figure]}"
        for number, run in enumerate(found["warm"], 1)
        for figure in ("drain_ratio", "ratio")
        if run[figure] < RATIO_BAR
    ]
    settled = found["from_zero"]["settled_s"]
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
            rates = bare(engine, prompts)
            number, best = max(rates.items(), key=lambda one: one[1])
            requests = round(best / MEAN_TOKENS * seconds)
            write_requests(path, model, requests)
            bare_seconds = float(_client("send", engine.url, str(path), str(number)))
            print(f"bare client, {requests} requests: {bare_seconds:.2f} s", flush=True)
            found = {
                "version": engine.version(),
                "bare": {number: round(rate) for number, rate in rates.items()},
                "best_in_flight": number,
                "requests": requests,
                "bare_seconds": round(bare_seconds, 2),
                **lowtide(engine, folder, path, requests, best, bare_seconds),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    problems = missed(found)
    print(json.dumps({**found, "missed": problems}))
    return problems

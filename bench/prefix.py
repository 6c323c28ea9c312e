"""A batch with shared system prompts, against an engine whose prefix cache is too small for them.

    python -m bench.prefix [--requests N] [--seeds 1,2] [--workers 1,2]    workers by seed

Each worker has an engine of its own: a server of `bench.engine_server` with vLLM's prefix cache, as
`bench.prefix_cache` models it, with blocks for two thirds of the system prompts, shared with what
runs. Requests with 20 system prompts in random order go through the real upload, split, queue and
worker: in the order of the file, ordered by prefix, and, as the bound, from a file that is grouped
by prompt. The engine counts the prompt tokens that it found in its cache. Uploads of files whose
requests have hardly anything in common are measured with and without the order. Ends with one JSON
line; exits with 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

from sqlalchemy import text

from bench.batch_files import write_batch_file
from bench.engine_load import STEPS, engine
from bench.job import until_done
from bench.stage import Stage
from lowtide.database.connections import connect

PROMPTS: Final = 20
PROMPT_CHARACTERS: Final = 4800
QUESTION_CHARACTERS: Final = 200
SEQUENCES: Final = 64
BLOCKS: Final = 1000
"""Of 16 tokens: the 20 system prompts have 1,500, and running requests need some of their own."""
RATIO_BAR, SAVED_BAR = 0.97, 0.7
UPLOADED, UPLOADS = 20_000, 5
CLAIMS = """
SELECT count(DISTINCT (lease_id, started_at)) AS claims FROM results WHERE batch_id = CAST(:batch AS uuid)
"""


@dataclass(frozen=True)
class Run:
    """One batch: how its file and its claims are ordered."""

    name: str
    grouped: bool
    ordered: bool


RUNS: Final = (
    Run("random", grouped=False, ordered=False),
    Run("ordered", grouped=False, ordered=True),
    Run("grouped file", grouped=True, ordered=False),
)


def write_file(path: Path, requests: int, seed: int, *, grouped: bool) -> None:
    """Write chat requests with 20 system prompts, which begin alike only in their first words."""
    rng = Random(seed)  # noqa: S311
    prompts = [f"You are assistant {n}. {_words(rng, PROMPT_CHARACTERS)}" for n in range(PROMPTS)]
    chosen = [rng.randrange(PROMPTS) for _ in range(requests)]
    if grouped:
        chosen.sort()
    with path.open("w", encoding="utf-8") as file:
        for number, prompt in enumerate(chosen):
            messages = [
                {"role": "system", "content": prompts[prompt]},
                {"role": "user", "content": _words(rng, QUESTION_CHARACTERS)},
            ]
            body = {"model": "bench", "messages": messages, "max_tokens": 200}
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**line, "body": body}) + "\n")


def _words(rng: Random, characters: int) -> str:
    return " ".join(f"{rng.randrange(10_000):04}" for _ in range(characters // 5))


def measure(
    stage: Stage, path: Path, requests: int, workers: int, *, ordered: bool
) -> dict[str, Any]:
    """Run one batch; return the engines' hits, and what it took."""
    settings = {"LOWTIDE_PREFIX_ORDER": str(ordered), "LOWTIDE_LOG_LEVEL": "warning"}
    with ExitStack() as running:
        engines = [running.enter_context(engine(SEQUENCES, BLOCKS)) for _ in range(workers)]
        functions = [
            running.enter_context(
                stage.function(
                    "infer_spot",
                    "worker",
                    signature="cloudevent",
                    LOWTIDE_ENGINE="openai",
                    LOWTIDE_ENGINE_URL=server.url,
                    **settings,
                )
            )
            for server in engines
        ]
        before = [function.cpu() for function in functions]
        created = stage.measured(STEPS, "submit", str(path), role="api", **settings)["batch"]
        batch = stage.measured(STEPS, "queue", created, **settings)["batch"]
        database = connect(stage.url("worker"))
        seconds = until_done(database, batch, requests)
        with database.begin() as connection:
            claims = connection.execute(text(CLAIMS), {"batch": batch}).scalar_one()
        database.dispose()
        cpu = sum(f.cpu() - b for f, b in zip(functions, before, strict=True))
        queried, hit = (sum(counts) for counts in zip(*map(_counts, engines), strict=True))
    return {
        "hit_rate": round(hit / queried, 3),
        "computed_tokens": round(queried - hit),
        "seconds": round(seconds, 1),
        "requests_a_claim": round(requests / claims, 1),
        "cpu_us_a_request": round(cpu / requests * 1e6),
    }


def case(stage: Stage, path: Path, requests: int, seed: int, workers: int) -> dict[str, Any]:
    """Measure each order of one seed; `saved` is the share of computed tokens that the order saves."""
    found: dict[str, Any] = {}
    for run in RUNS:
        write_file(path, requests, seed, grouped=run.grouped)
        found[run.name] = measure(stage, path, requests, workers, ordered=run.ordered)
    computed = {name: run["computed_tokens"] for name, run in found.items()}
    return found | {"saved": round(1 - computed["ordered"] / computed["random"], 3)}


def _counts(server: Any) -> tuple[float, float]:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:  # noqa: S310
        lines = answer.read().decode().splitlines()
    queried, hit = (
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:prefix_cache_")
    )
    return queried, hit


def ingest(stage: Stage, folder: Path) -> dict[str, dict[str, float]]:
    """Return the microseconds of CPU per request of an upload, without and with the order.

    The requests of these files have hardly anything in common.
    """
    found: dict[str, dict[str, float]] = {}
    for size in (600, 4000):
        path = folder / "plain.jsonl"
        write_batch_file(path, UPLOADED, size)
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(UPLOADS):
            for ordered, each in times.items():
                order = str(ordered)
                run = stage.measured(
                    STEPS, "upload", str(path), role="api", LOWTIDE_PREFIX_ORDER=order
                )
                each.append(run["cpu"] / UPLOADED * 1e6)
        without, with_order = (round(median(times[ordered]), 2) for ordered in (False, True))
        found[f"{size} bytes"] = {"without": without, "with": with_order}
    return found


def missed(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Return the figures that miss their bars."""
    problems = []
    for name, run in runs.items():
        ratio = run["ordered"]["hit_rate"] / run["grouped file"]["hit_rate"]
        if ratio < RATIO_BAR:
            problems.append(f"{name}: {ratio:.2f} of the hit rate of a grouped file")
        if run["saved"] < SAVED_BAR:
            problems.append(f"{name}: {run['saved']:.2f} of the computed tokens saved")
    return problems


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=800, help="requests of a batch")
    parser.add_argument("--seeds", default="1,2", help="seeds of the order of the files")
    parser.add_argument(
        "--workers", default="1,2", help="workers for each seed, each with an engine of its own"
    )
    given = parser.parse_args()
    seeds, workers_of = given.seeds.split(","), given.workers.split(",")
    cases = [(int(seed), int(n)) for seed, n in zip(seeds, workers_of, strict=True)]
    folder = Path(tempfile.mkdtemp(prefix="bench-prefix-"))
    runs: dict[str, dict[str, Any]] = {}
    try:
        with Stage(folder) as stage:
            for seed, workers in cases:
                name = f"seed {seed}, {workers} worker{'s' * (workers > 1)}"
                runs[name] = case(stage, folder / "in.jsonl", given.requests, seed, workers)
                print(f"{name}:", flush=True)
                for each in RUNS:
                    print(f"  {each.name:12} {runs[name][each.name]}", flush=True)
                print(f"  {runs[name]['saved']:.0%} of the computed tokens saved", flush=True)
            uploaded = ingest(stage, folder)
            print(f"microseconds of CPU per request of an upload: {uploaded}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    problems = missed(runs)
    print(json.dumps({"runs": runs, "upload_us": uploaded, "missed": problems}))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()

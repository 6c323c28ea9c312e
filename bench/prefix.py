"""A batch with shared system prompts, against an engine whose prefix cache is too small for them.

    python -m bench.prefix [--requests N] [--seeds 1,2] [--workers 1,2]

Each worker has an engine of its own: a server of `bench.engine_server` with vLLM's prefix cache, as
`bench.prefix_cache` models it, with room for half of the system prompts beside what runs. Requests
with 20 system prompts in random order go through the real split, queue and worker: in the order of
the file, ordered by prefix, and, as the bound, from a file that is grouped by prompt. The engine
counts the prompt tokens that it found in its cache. Ends with one JSON line; exits with 1 if a
figure misses its bar.
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
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from bench.engine_load import STEPS, engine
from bench.job import until_done
from bench.stage import Stage
from lowtide.database.connections import connect

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPTS: Final = 20
PROMPT_CHARACTERS: Final = 4800
QUESTION_CHARACTERS: Final = 200
SEQUENCES: Final = 64
BLOCKS: Final = 1000
"""Of 16 tokens: 20 prompts have 1,500, and 64 running requests about 500 of their own."""
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


def _counts(server: Any) -> tuple[float, float]:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:  # noqa: S310
        lines = answer.read().decode().splitlines()
    queried, hit = (
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:prefix_cache_")
    )
    return queried, hit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--workers", default="1,2")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-prefix-"))
    results = []
    try:
        with Stage(folder) as stage:
            for seed in map(int, given.seeds.split(",")):
                for workers in map(int, given.workers.split(",")):
                    for run in RUNS:
                        path = folder / "requests.jsonl"
                        write_file(path, given.requests, seed, grouped=run.grouped)
                        found = measure(stage, path, given.requests, workers, ordered=run.ordered)
                        print(seed, workers, run.name, found, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

"""The scene of the portal's screenshots: a stack of its own, with a history.

Older batches and the samples of the pools are made up, so that lists and charts have a past; the
newest batches run on the simulated engine.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from lowtide.cli import client as api
from lowtide.cli.output import ERR
from lowtide.cli.progress import UploadProgress
from lowtide.engines.model import EngineRequest
from lowtide.engines.outcomes import Answered
from lowtide.engines.simulated import SimulatedEngine
from lowtide.local import files, runtime
from lowtide.local.bootstrap import DATABASE
from lowtide.local.database import engine
from lowtide.local.options import Options
from lowtide.local.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from openai import OpenAI

    from lowtide.local.state import Status

ENDPOINT: Final = "/v1/chat/completions"
FAILURES: Final = 0.08
INTERRUPTIONS: Final = 0.05
ATTEMPTS: Final = 2
SETTINGS: Final = {
    "LOWTIDE_SIMULATED_INTERRUPTION_RATE": str(INTERRUPTIONS),
    "LOWTIDE_SIMULATED_FAILURE_RATE": str(FAILURES),
    "LOWTIDE_SIMULATED_LATENCY": "2.5",
    "LOWTIDE_MAX_ATTEMPTS": str(ATTEMPTS),
    "LOWTIDE_RETRY_CAP": "2",
    "LOWTIDE_CURRENCY": "USD",
    "LOWTIDE_SPOT_PRICE": "0.9",
    "LOWTIDE_DEDICATED_PRICE": "2.9",
    "LOWTIDE_GRAFANA_URL": "https://grafana.example",
    "LOWTIDE_PROMETHEUS_URL": "https://prometheus.example",
}
TENANTS: Final = {
    "acme": (
        *("--requests-per-minute", "600", "--active-batches", "20", "--weight", "2"),
        *("--enqueued-tokens", "5000000", "--tokens-per-day", "2000000", "--spend-per-month", "40"),
    ),
    "research": ("--queued-requests", "200000",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """One batch of the scene; `doomed` selects requests that fail at every attempt."""

    tenant: str
    user: str
    model: str
    lines: int
    window: str = "24h"
    doomed: bool = False


FIRST: Final = (
    Job("acme", "ana", "llama-3.1-8b", 120),
    Job("acme", "ben", "qwen2.5-7b", 60, "1m"),
    Job("research", "chen", "llama-3.1-70b", 400, "2h"),
    Job("research", "prompt-test", "qwen2.5-7b", 6, "7d", doomed=True),
    Job("acme", "ana", "llama-3.1-8b", 250, "6h"),
)
CANCELLED: Final = Job("default", "support-triage", "llama-3.1-8b", 5_000)
# Still running during the screenshots; the first has too many requests for its window.
LAST: Final = (
    Job("acme", "nightly-eval", "llama-3.1-70b", 40_000, "25m"),
    Job("research", "summaries", "llama-3.1-70b", 9_000),
    Job("default", "embeddings-refresh", "qwen2.5-7b", 4_000, "12h"),
)

PAST_BATCHES: Final = """
WITH made AS (
  SELECT n, now() - interval '4 minutes' - n * interval '21 minutes' AS created,
    (SELECT id FROM tenants ORDER BY id OFFSET mod(n, 3) LIMIT 1) AS tenant,
    (ARRAY['ana', 'nightly-eval', 'chen', 'support-triage', 'summaries'])[1 + mod(n, 5)] AS who,
    (ARRAY['llama-3.1-8b', 'llama-3.1-70b', 'qwen2.5-7b'])[1 + mod(n, 3)] AS model,
    CASE WHEN mod(n, 23) = 7 THEN 'expired' WHEN mod(n, 31) = 11 THEN 'cancelled'
      WHEN mod(n, 37) = 5 THEN 'failed' ELSE 'completed' END AS status,
    200 + mod(n * 7919, 4800) AS lines,
    interval '4 minutes' + mod(n * 13, 50) * interval '1 minute' AS took
  FROM generate_series(1, 90) n
), batch AS (
  INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, model,
    completion_window, status, created_at, deadline, in_progress_at, completed_at, failed_at,
    expired_at, cancelled_at, total, completed, failed)
  SELECT cast(lpad(to_hex(cast(extract(epoch FROM created) * 1000 AS bigint)), 12, '0')
      || '70008' || lpad(to_hex(n), 15, '0') AS uuid),
    tenant, who, gen_random_uuid(), 'made-up', '/v1/chat/completions', model,
    CASE status WHEN 'expired' THEN '30m' ELSE '24h' END, status, created,
    created + CASE status WHEN 'expired' THEN interval '30 minutes' ELSE interval '24 hours' END,
    CASE WHEN status <> 'failed' THEN created END,
    CASE WHEN status = 'completed' THEN created + took END,
    CASE WHEN status = 'failed' THEN created + interval '2 seconds' END,
    CASE WHEN status = 'expired' THEN created + interval '30 minutes' END,
    CASE WHEN status = 'cancelled' THEN created + interval '3 minutes' END,
    CASE WHEN status = 'failed' THEN 0 ELSE lines END,
    CASE status WHEN 'completed' THEN lines - lines / 90 WHEN 'failed' THEN 0 ELSE lines / 3 END,
    CASE status WHEN 'completed' THEN lines / 90 WHEN 'failed' THEN 0 ELSE lines - lines / 3 END
  FROM made RETURNING id, tenant_id, status, completed, failed, total
)
INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed, failed, interrupted, escalated,
  input_tokens, output_tokens)
SELECT id, pool, '00000000-0000-0000-0000-000000000000', tenant_id,
  CASE pool WHEN 'spot' THEN completed - completed / 8 ELSE completed / 8 END,
  CASE WHEN pool = 'dedicated' THEN 0 WHEN status = 'completed' THEN failed ELSE total / 90 END,
  CASE pool WHEN 'spot' THEN total / 14 ELSE 0 END,
  CASE pool WHEN 'spot' THEN 0 ELSE completed / 8 END,
  completed * 90, completed * 210
FROM batch, unnest(ARRAY['spot', 'dedicated']) pool
"""
PAST_SAMPLES: Final = """
INSERT INTO pool_samples (at, pool, queued, running, oldest_age, desired, live, seconds, done,
  interrupted, replica_seconds)
SELECT at, pool, queued, live * 32, CASE WHEN queued > 0 THEN queued / 14.0 ELSE 0 END, desired, live,
  60, live * cast(540 + 90 * random() AS integer),
  CASE pool WHEN 'spot' THEN live * cast(6 + 30 * power(random(), 3) AS integer) ELSE 0 END, live * 55
FROM (
  SELECT at, pool, least(most, cast(ceil(most * load) AS integer)) AS live,
    least(most, cast(ceil(most * (load + 0.15)) AS integer)) AS desired,
    cast(share * 42000 * power(load, 2) * (0.8 + 0.3 * random()) AS integer) AS queued
  FROM (
    SELECT at, pool, most, share, greatest(0, cos(extract(epoch FROM now() - at) / 86400 * 4 * pi())
      + 0.3 * cos(extract(epoch FROM now() - at) / 2100) + 0.1 * random() - floor) AS load
    FROM generate_series(now() - interval '7 days', now() - interval '1 minute', interval '1 minute') at,
      (VALUES ('spot', 4, 1.0, 0.3), ('dedicated', 2, 0.05, 0.85)) AS pools (pool, most, share, floor)
  ) waves
) levels
"""


@contextmanager
def staged(seconds: float) -> Iterator[Status]:
    """Run the stack and its batches, spread over `seconds`; remove all of it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="lowtide-screenshots-"))
    os.environ.update(SETTINGS)
    try:
        status = runtime.up_detached(
            Options(data_dir=folder, port=int(os.environ.get("PORT") or 8480))
        )
        clients = {"default": api.open_client(status.base_url, status.api_key)}
        for tenant, limits in TENANTS.items():
            _lowtide(folder, "tenants", "create", tenant, *limits)
            made = _lowtide(folder, "keys", "create", tenant, "--name", "batch-jobs")
            clients[tenant] = api.open_client(status.base_url, json.loads(made)["key"])
        _make_up(folder, PAST_BATCHES)
        _run(clients, folder, seconds)
        # Last, so that it replaces the samples taken while the batches ran.
        _make_up(folder, "SELECT setseed(0.4)", "DELETE FROM pool_samples", PAST_SAMPLES)
        yield status
    finally:
        runtime.down(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _lowtide(folder: Path, *words: str) -> str:
    command = [str(Path(sys.executable).with_name("lowtide")), *words, "--json"]
    return subprocess.run(  # noqa: S603 - our own command
        [*command, "--data-dir", str(folder)], check=True, capture_output=True, text=True
    ).stdout


def _make_up(folder: Path, *statements: str) -> None:
    known = files.read(folder)
    assert known is not None  # noqa: S101 - the stack runs
    state = json.loads((folder / "state.json").read_bytes())
    port = next(each["port"] for each in state["processes"] if each["name"] == "postgres")
    password = known.passwords[files.SUPERUSER]
    url = f"postgresql://{files.SUPERUSER}:{password}@{HOST}:{port}/{DATABASE}"
    with engine(url, timeout=60).connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


def _run(clients: dict[str, OpenAI], folder: Path, seconds: float) -> None:
    for place, job in enumerate(FIRST):
        _submit(clients, folder, place, job)
        time.sleep(seconds / len(FIRST))
    given_up = _submit(clients, folder, len(FIRST), CANCELLED)
    time.sleep(6)
    clients[CANCELLED.tenant].batches.cancel(given_up)
    for place, job in enumerate(LAST, len(FIRST) + 1):
        _submit(clients, folder, place, job)
    # The next tick marks the batches at risk.
    time.sleep(15)


def _submit(clients: dict[str, OpenAI], folder: Path, place: int, job: Job) -> str:
    path = folder / f"{job.user}-{place}.jsonl"
    path.write_text("".join(f"{line}\n" for line in request_lines(job)))
    progress = UploadProgress(ERR)
    batch = api.submit(
        clients[job.tenant], path, api.Terms(job.window, job.user), progress=progress
    )
    print(batch.id, path.name)  # noqa: T201
    return batch.id


def request_lines(job: Job) -> Sequence[str]:
    """Return the lines of a job's file."""
    numbers: Sequence[int] = range(1, job.lines + 1)
    if job.doomed:
        numbers = asyncio.run(_doomed(job))
    return [
        json.dumps(
            {
                "custom_id": f"{job.user}-{number:05}",
                "method": "POST",
                "url": ENDPOINT,
                "body": _body(job, number),
            }
        )
        for number in numbers
    ]


def _body(job: Job, number: int) -> dict[str, object]:
    question = f"What does tide table {number} say about low water?"
    return {"model": job.model, "messages": [{"role": "user", "content": question}]}


async def _doomed(job: Job) -> list[int]:
    """Return the numbers of requests that fail at every attempt on spot."""
    requests: dict[int, tuple[int, EngineRequest]] = {}
    for number in range(1, 2000):
        body = json.dumps(_body(job, number)).encode()
        for attempt in range(1, ATTEMPTS + 1):
            key = len(requests)
            requests[key] = number, EngineRequest(key, ENDPOINT, body, attempt, spot=True)
    simulated = SimulatedEngine(failure_rate=FAILURES, interruption_rate=INTERRUPTIONS)
    alive = set()
    async for outcomes in simulated.run([request for _, request in requests.values()]):
        for key, outcome in outcomes:
            if not isinstance(outcome, Answered) or outcome.status_code < 500:
                alive.add(requests[key][0])
    return [number for number in range(1, 2000) if number not in alive][: job.lines]

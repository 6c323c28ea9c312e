"""Twenty clients at once against each limit of a tenant, while workers are killed."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from openai import OpenAI, RateLimitError

from tests.days import within_a_day
from tests.e2e.command import lowtide
from tests.e2e.questions import chat_file
from tests.e2e.stacks import running
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.stacks import LocalStack

CLIENTS = 20
LINES = 40
FILE = chat_file(LINES)
TOKENS = -(-len(FILE) // 4)
"""The estimated input tokens of the file."""
BATCHES = 5
"""What each limit leaves room for."""
KILLS = 4
SETTINGS = {
    "LOWTIDE_SIMULATED_LATENCY": "0.3",
    "LOWTIDE_SIMULATED_INTERRUPTION_RATE": "0",
    "LOWTIDE_WORKER_CONCURRENCY": "16",
    "LOWTIDE_LEASE_DURATION": "4",
    "LOWTIDE_SPOT_ROWS_PER_REPLICA": "20",
    "LOWTIDE_SPOT_REPLICAS": "3",
    "LOWTIDE_SPOT_PRICE": "3600",
    "LOWTIDE_DEDICATED_PRICE": "3600",
}
LIMITS = {
    "active_batches": BATCHES,
    "queued_requests": BATCHES * LINES,
    "enqueued_tokens": BATCHES * TOKENS,
}
USED = """
SELECT (SELECT count(*) FROM batches WHERE tenant_id = t.id AND status IN (
    'validating', 'in_progress', 'finalizing', 'cancelling')) AS active_batches,
  (SELECT count(*) FROM queue WHERE tenant_id = t.id) + c.running AS queued_requests,
  (SELECT coalesce(sum(enqueued_tokens), 0) FROM batches
    WHERE tenant_id = t.id AND status = 'validating') AS enqueued_tokens,
  c.running, u.tokens, u.spend, r.tokens AS of_results, r.requests AS results, r.answered,
  (SELECT coalesce(sum(requests), 0) FROM usage_days WHERE tenant_id = t.id) AS requests,
  (SELECT coalesce(sum(spot_cost + dedicated_cost), 0) FROM batch_states WHERE tenant_id = t.id)
    AS of_batches, r.largest
FROM tenants t
CROSS JOIN LATERAL (SELECT count(*) AS running FROM claims WHERE tenant_id = t.id) c
CROSS JOIN LATERAL quota_use(t.id) u
CROSS JOIN LATERAL (
  SELECT coalesce(sum(input_tokens + output_tokens), 0) AS tokens, count(*) AS requests,
    count(status_code) AS answered, coalesce(max(input_tokens + output_tokens), 0) AS largest
  FROM results WHERE tenant_id = t.id) r
WHERE t.name = :name
"""


@pytest.fixture(scope="module")
def limited() -> Iterator[LocalStack]:
    with running(SETTINGS) as stack:
        yield stack


class Watched:
    """A tenant with a limit, its clients, and the highest use of the limit that was seen."""

    def __init__(self, stack: LocalStack, name: str, **limits: int) -> None:
        self.stack, self.name = stack, name
        self._data = ("--data-dir", str(stack.data_dir))
        self.operate("tenants", "create", name, *self._options(limits))
        self.key = self.operate("keys", "create", name).strip()
        self.peaks: dict[str, float] = {}
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def operate(self, *arguments: str) -> str:
        return lowtide(*arguments, *self._data).stdout

    def limit(self, **limits: int) -> None:
        self.operate("tenants", "set", self.name, *self._options(limits))

    @staticmethod
    def _options(limits: dict[str, int]) -> list[str]:
        return [
            part
            for name, value in limits.items()
            for part in (f"--{name.replace('_', '-')}", str(value))
        ]

    def __enter__(self) -> Watched:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._watcher.join()

    @property
    def used(self) -> dict[str, Any]:
        (row,) = self.stack.query(USED, name=self.name)
        return dict(row._mapping)

    def _watch(self) -> None:
        while not self._stopping.wait(0.02):
            for name, value in self.used.items():
                self.peaks[name] = max(self.peaks.get(name, 0), value)

    def submit(self) -> list[str]:
        """Let twenty clients create a batch at once; return the outcomes."""
        gate = threading.Barrier(CLIENTS)
        client = OpenAI(base_url=f"{self.stack.base_url}/v1", api_key=self.key, max_retries=0)
        with client, ThreadPoolExecutor(CLIENTS) as clients:
            file = client.files.create(file=("input.jsonl", FILE), purpose="batch").id

            def create(_: int) -> str:
                gate.wait()
                try:
                    client.batches.create(
                        input_file_id=file,
                        endpoint="/v1/chat/completions",
                        completion_window="24h",
                    )
                except RateLimitError as error:
                    return json.dumps([error.body, int(error.response.headers["retry-after"])])
                return "created"

            return list(clients.map(create, range(CLIENTS)))

    def has_ended(self) -> bool:
        return int(self.used["active_batches"]) == 0


def _kill_workers(stack: LocalStack, tenant: Watched, times: int = KILLS) -> None:
    """Kill that many busy workers, one after the other."""

    def busy() -> str | None:
        ready = [one.name for one in stack.workers() if one.state == "ready"]
        return ready[0] if ready and tenant.used["running"] else None

    for _ in range(times):
        name = until(busy, "requests run")
        assert name is not None
        stack.kill(name)


def _check_exact(used: dict[str, Any]) -> None:
    assert used["tokens"] == used["of_results"], "each result is charged once"
    assert used["requests"] == used["answered"], "and one that cost its workers their lives is free"
    assert used["spend"] == pytest.approx(used["of_batches"], rel=1e-9)


@pytest.mark.parametrize("limit", LIMITS)
def test_twenty_clients_never_exceed_a_limit(limited: LocalStack, limit: str) -> None:
    with Watched(limited, limit.replace("_", "-"), **{limit: LIMITS[limit]}) as tenant:
        outcomes = tenant.submit()
        refused = [outcome for outcome in outcomes if outcome != "created"]
        # What ends meanwhile makes room again, as it should.
        assert outcomes.count("created") >= BATCHES
        assert refused
        assert all("the limit is" in outcome for outcome in refused)
        _kill_workers(limited, tenant, 2)
        until(tenant.has_ended, "every batch ended", within=180)
        assert 0 < tenant.peaks[limit] <= LIMITS[limit]
    used = tenant.used
    assert used["results"] == outcomes.count("created") * LINES
    _check_exact(used)


@pytest.mark.parametrize(
    ("quota", "column", "most"),
    [("tokens_per_day", "tokens", 20_000), ("spend_per_month", "spend", 5)],
    ids=["tokens", "spend"],
)
def test_quota_is_exceeded_by_what_was_running_alone(
    limited: LocalStack, quota: str, column: str, most: int
) -> None:
    """Workers die on the way; what is left runs once the operator raises the quota."""
    within_a_day(300)
    total = CLIENTS * LINES
    with Watched(limited, quota.replace("_", "-"), **{quota: most}) as tenant:
        assert tenant.submit() == ["created"] * CLIENTS
        _kill_workers(limited, tenant)

        def rests() -> bool:
            used = tenant.used
            return bool(used[column] >= most and used["running"] == 0)

        until(rests, "the quota is used up, and nothing runs", within=180)
        rested = tenant.used
        share = rested[column] / rested["results"]
        largest = rested["largest"] if column == "tokens" else 20 * share
        assert most <= rested[column] <= most + tenant.peaks["running"] * largest
        assert rested["results"] < total
        _check_exact(rested)
        (refused, *_) = set(tenant.submit())
        assert "the limit is" in refused
        assert tenant.used["results"] == rested["results"], "nothing ran meanwhile"
        until(lambda: not limited.workers(), "no worker idles for it", within=120)
        tenant.limit(**{quota: 10**9})
        until(tenant.has_ended, "every batch ended", within=240)
    assert tenant.used["results"] == total
    _check_exact(tenant.used)

"""Requests survive engines that are down, broken, busy or misconfigured."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from lowtide.engines.breaker import STREAK
from lowtide.local.ports import free_port
from lowtide.worker.engine_watch import RECENT
from tests.chaos.control import HOST, Helper
from tests.chaos.exchange import MODEL, Request, check_answer, input_file
from tests.e2e.stacks import new_stack
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.stacks import LocalStack

WORKERS = 4
ATTEMPTS = 5
CAP = 5.0
SETTINGS = {
    "LOWTIDE_ENGINE": "openai",
    "LOWTIDE_SPOT_REPLICAS": str(WORKERS),
    "LOWTIDE_MAX_ATTEMPTS": str(ATTEMPTS),
    # Short enough that every attempt of a request would be spent within each of these faults.
    "LOWTIDE_RETRY_BASE": "0.2",
    "LOWTIDE_RETRY_CAP": str(CAP),
    "LOWTIDE_ENGINE_TIMEOUT": "3",
    "LOWTIDE_WORKER_POLL_CAP": "0.5",
    "LOWTIDE_WORKER_CONCURRENCY": "8",
    "LOWTIDE_WORKER_PREFETCH": "4",
    "LOWTIDE_COLD_START": "2",
}


class Rig:
    """A stack in front of an engine that misbehaves on command, to all workers or to one."""

    def __init__(self, stack: LocalStack, engine: Helper, log: Path) -> None:
        self.stack = stack
        self._engine = engine
        self._log = log
        self._batches = 0

    def fault(self, mode: str, seconds: float, target: str = "*") -> None:
        """Start a fault of the engine."""
        self._engine.order(mode=mode, target=target, seconds=seconds)

    def heal(self) -> None:
        """End every fault."""
        self._engine.order(mode="heal", target="*", seconds=0)

    def forget_successes(self) -> None:
        """Wait until no earlier success counts as recent for a worker."""
        unhealthy = "SELECT 1 FROM workers WHERE engine_state <> 'closed'"
        until(lambda: not self.stack.query(unhealthy), "every breaker is closed", within=90)
        # From here on the engine gets no requests.
        since = time.monotonic()
        until(lambda: time.monotonic() - since > RECENT, "successes are no longer recent")

    def submit(self, requests: int, *poison: int) -> tuple[str, bytes]:
        """Create a batch of healthy requests and one poison request per status of `poison`."""
        self._batches += 1
        statuses = [200] * requests + list(poison)
        source = input_file(
            Request(f"b{self._batches}/{n}", status) for n, status in enumerate(statuses)
        )
        return self.stack.submit(self.stack.upload(source)), source

    def completed(self, batch: str) -> int:
        """Return the completed requests of a batch."""
        return int(self.stack.batch(batch)["request_counts"]["completed"])

    def attempts(self, batch: str) -> Counter[int]:
        """Return the number of requests of a batch by number of attempts."""
        rows = self.stack.query(
            "SELECT attempts FROM results WHERE batch_id = :batch",
            batch=batch.removeprefix("batch_"),
        )
        return Counter(row.attempts for row in rows)

    def reasons(self) -> list[str]:
        """Return the reasons of open breakers."""
        rows = self.stack.query(
            "SELECT engine_reason FROM workers WHERE engine_state IN ('open', 'probing')"
        )
        return [row.engine_reason for row in rows]

    def waiting(self) -> set[int]:
        """Return the pids of workers whose breaker is not closed."""
        rows = self.stack.query("SELECT name FROM workers WHERE engine_state <> 'closed'")
        return {int(row.name.rpartition("/")[2]) for row in rows}

    def executions(self, since: float, worker: str = "") -> list[str]:
        """Return the outcomes of all executions since then, or of those of one worker."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [
            outcome
            for _, name, _, began, _, outcome in lines
            if worker in {"", name} and began >= since
        ]

    def readiness(self, worker: str) -> tuple[int, str]:
        """Return status and body of a worker's readiness probe."""
        port = self.stack.program(worker).health_port
        try:
            with urlopen(f"http://{HOST}:{port}/health/ready", timeout=5) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("engine")
    port, log = free_port(), folder / "executions.jsonl"
    stack = new_stack({**SETTINGS, "LOWTIDE_ENGINE_URL": f"http://{HOST}:{port}"})
    log.touch()
    engine = Helper.start(
        "tests.chaos.engine", [stack.data_dir, log, str(port), MODEL], folder / "engine.log"
    )
    try:
        stack.up()
        yield Rig(stack, engine, log)
    finally:
        stack.discard()
        engine.stop()


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    yield shared_rig
    shared_rig.heal()


def _assert_unharmed(rig: Rig, batch: str, source: bytes, charged: int = 0) -> None:
    """Assert that every request completes at its first attempt, up to `charged` at their second."""
    final = rig.stack.finish(batch, source, answers=check_answer, within=240)
    counts = final["request_counts"]
    assert (counts["failed"], counts["completed"]) == (0, counts["total"])
    attempts = rig.attempts(batch)
    assert attempts.pop(2, 0) <= charged
    assert set(attempts) == {1}


@pytest.mark.parametrize(
    ("mode", "seconds"),
    [
        pytest.param("down", 15.0, id="port closed for 15 s"),
        pytest.param("503", 12.0, id="503"),
        pytest.param("429", 12.0, id="429"),
        pytest.param("503_retry_after", 12.0, id="503 with Retry-After"),
        pytest.param("529", 8.0, id="529"),
        pytest.param("401", 8.0, id="key refused"),
        pytest.param("wrong_model", 8.0, id="model missing"),
        pytest.param("liar", 8.0, id="500 for everything but health"),
    ],
)
def test_engine_outage_is_not_charged_to_requests(rig: Rig, mode: str, seconds: float) -> None:
    # The fault starts before the batch: an outage in the middle is another test.
    rig.forget_successes()
    began = time.time()
    rig.fault(mode, seconds)
    batch, source = rig.submit(300)
    # Only a further request shows whether a 500 is the engine's fault: a worker's last 500 may arrive
    # just before the fault ends, and the answer to its next request after it.
    _assert_unharmed(rig, batch, source, charged=WORKERS * STREAK if mode == "liar" else 0)
    assert rig.executions(began).count(mode) < 300, "the breakers reduce the load"


def test_engine_outage_mid_batch_is_not_charged_to_requests(rig: Rig) -> None:
    batch, source = rig.submit(1500)
    until(lambda: rig.completed(batch) > 100, "the batch runs", within=60)
    rig.fault("down", 10.0)
    _assert_unharmed(rig, batch, source)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        pytest.param("down", "could not be reached", id="down"),
        pytest.param("401", "LOWTIDE_ENGINE_API_KEY", id="key refused"),
        pytest.param("wrong_model", "does not serve", id="model missing"),
    ],
)
def test_worker_reports_why_it_claims_nothing(rig: Rig, mode: str, reason: str) -> None:
    rig.fault(mode, 60.0)
    batch, source = rig.submit(50)
    until(
        lambda: any(reason in each for each in rig.reasons()),
        f"a worker reports {reason}",
        within=90,
    )
    worker = rig.stack.workers()[0].name

    def is_unready() -> bool:
        status, text = rig.readiness(worker)
        return status == 503 and "engine_unavailable" in text

    until(is_unready, "the worker is not ready", within=60)
    # Workers that cannot run requests release all claims, including those of a canary.
    until(lambda: not rig.stack.query("SELECT 1 FROM claims"), "no claims are left", within=60)
    rig.heal()
    _assert_unharmed(rig, batch, source)
    until(lambda: rig.readiness(worker)[0] == 200, "the worker is ready again", within=30)


def test_worker_started_without_engine_waits(rig: Rig) -> None:
    rig.fault("down", 120.0)
    batch, source = rig.submit(50)
    until(rig.waiting, "a worker waits for its engine", within=90)
    before = rig.waiting()
    rig.stack.kill(rig.stack.workers()[0].name)
    until(lambda: rig.waiting() - before, "the replacement waits, too", within=90)
    until(lambda: not rig.stack.query("SELECT 1 FROM claims"), "no claims are left", within=60)
    rig.heal()
    _assert_unharmed(rig, batch, source)


@pytest.mark.parametrize("mode", ["429_absurd", "503_absurd"])
def test_absurd_retry_after_is_capped(rig: Rig, mode: str) -> None:
    rig.fault(mode, 6.0)
    batch, source = rig.submit(100)
    until(
        lambda: rig.stack.query("SELECT 1 FROM queue WHERE available_at > now()"),
        "some requests wait",
    )
    [row] = rig.stack.query(
        "SELECT max(extract(epoch FROM available_at - now())) AS longest FROM queue"
    )
    assert row.longest <= CAP
    _assert_unharmed(rig, batch, source)


def test_one_broken_engine_fails_no_request(rig: Rig) -> None:
    began = time.time()
    batch, source = rig.submit(3000)
    until(
        lambda: rig.completed(batch) > 50 and len(rig.stack.workers()) >= 3,
        "at least three workers run",
    )
    broken = rig.stack.workers()[0].name
    rig.fault("liar", 600.0, target=broken)
    final = rig.stack.finish(batch, source, answers=check_answer, within=180)
    assert final["request_counts"]["failed"] == 0
    failures = rig.executions(began, broken).count("liar")
    # Requests in flight, those until the breaker opens, and a probe every 15 s.
    assert 1 <= failures <= 60
    assert max(rig.attempts(batch)) <= 3


def test_poison_requests_fail_without_affecting_others(rig: Rig) -> None:
    batch, source = rig.submit(200, 500, 500, 400)
    final = rig.stack.follow(batch)[-1]
    assert final["request_counts"] == {"total": 203, "completed": 200, "failed": 3}
    errors = rig.stack.content(final["error_file_id"]).splitlines()
    statuses = [json.loads(line)["response"]["status_code"] for line in errors]
    assert sorted(statuses) == [400, 500, 500]
    assert rig.attempts(batch) == {1: 201, ATTEMPTS: 2}
    letters = rig.stack.query(
        "SELECT line FROM dead_letters WHERE batch_id = :batch", batch=batch.removeprefix("batch_")
    )
    assert len(letters) == 2
    assert source.count(b"\n") == 203


def test_single_poison_request_fails(rig: Rig) -> None:
    batch, _ = rig.submit(0, 500)
    final = rig.stack.follow(batch)[-1]
    assert final["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
    assert rig.attempts(batch) == {ATTEMPTS: 1}

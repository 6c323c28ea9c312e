"""A batch of 20,000 requests ends complete and correct after SIGKILL to each process in turn.

No test guesses the moment: it polls the database, the object store or the process tree until the
victim is in the middle of its work.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.conftest import StackFactory
    from tests.e2e.stacks import LocalStack, Program

REQUESTS = 20_000
SETTINGS = {
    "LOWTIDE_SIMULATED_LATENCY": "0",
    "LOWTIDE_SIMULATED_TOKENS": "120",
    "LOWTIDE_SIMULATED_INTERRUPTION_RATE": "0.02",
    "LOWTIDE_LEASE_DURATION": "3",
    "LOWTIDE_DATABASE_TIMEOUT": "5",
    "LOWTIDE_STALLED_AFTER": "5",
    "LOWTIDE_WORKER_POLL_CAP": "1",
}
SHORT_INTERVAL = 0.002
"""Seconds between polls of a short-lived state."""


@pytest.fixture(scope="module")
def breakable(make_stack: StackFactory) -> LocalStack:
    """The stack whose processes are killed."""
    return make_stack(SETTINGS)


@pytest.fixture(scope="module")
def source() -> bytes:
    """The input file."""
    return chat_file(REQUESTS)


@pytest.fixture(scope="module")
def file(breakable: LocalStack, source: bytes) -> str:
    """The input file's id."""
    return breakable.upload(source)


@pytest.fixture
def assert_survives(breakable: LocalStack, source: bytes) -> Callable[[str], None]:
    """Assert that a batch ends complete and correct without help."""

    def check(batch: str) -> None:
        breakable.finish(batch, source, answers=simulated_answer, within=150)

    return check


@pytest.fixture(autouse=True)
def _healed(breakable: LocalStack) -> Iterator[None]:
    """Wait after each test until every process is ready again."""
    yield
    until(
        lambda: all(program.state == "ready" for program in breakable.programs().values()),
        "every process is ready again",
    )


def result_count(stack: LocalStack, batch: str) -> int:
    """Return how many requests of a batch have a result; 0 while the database is down."""
    rows = stack.attempt(
        "SELECT count(*) FROM results WHERE batch_id = :batch",
        batch=batch.removeprefix("batch_"),
    )
    return rows[0][0] if rows else 0


def wait_for_progress(stack: LocalStack, batch: str) -> None:
    """Wait until some requests have a result and some have not."""
    finished = until(lambda: result_count(stack, batch), "the batch makes progress")
    assert finished < REQUESTS


def freeze_during(
    stack: LocalStack,
    name: str,
    file: str,
    condition: Callable[[], object],
    *,
    missed: Callable[[str], object],
) -> str:
    """Freeze a process in the middle of its work on a new batch; return the batch.

    A busy machine may miss a short-lived state: if `missed`, the next batch is tried.
    """
    for _ in range(4):
        batch = stack.submit(file)
        while not stack.freeze_while(name, condition):
            if missed(batch):
                break
        else:
            return batch
    pytest.fail(f"{name} was never observed in the middle of its work")


def is_splitting(stack: LocalStack) -> bool:
    """Return whether split is copying requests in an open transaction."""
    return bool(
        stack.attempt(
            """SELECT 1 FROM pg_stat_activity WHERE application_name = 'lowtide split'
               AND state IN ('active', 'idle in transaction') AND query LIKE '%COPY incoming%'"""
        )
    )


def test_batch_survives_killed_split(
    breakable: LocalStack, file: str, assert_survives: Callable[[str], None]
) -> None:
    with breakable.locked("queued_runs"):
        batch = freeze_during(
            breakable,
            "split",
            file,
            lambda: is_splitting(breakable),
            missed=lambda _: breakable.waits_for_lock("split"),
        )
        breakable.kill("split")
        until(lambda: breakable.waits_for_lock("split"), "split has read the file again")
        breakable.kill("split")
        assert breakable.batch(batch)["status"] == "validating"
        assert not breakable.query("SELECT 1 FROM requests WHERE batch_id = :b", b=batch[6:])
    assert_survives(batch)


def claim_count(stack: LocalStack, worker: Program) -> int:
    """Return how many requests the processes of a worker have claimed."""
    rows = stack.query(
        """SELECT count(*) FROM claims c JOIN workers w ON w.id = c.lease_id
           WHERE split_part(w.name, '/', 2) = ANY(:pids)""",
        pids=[str(pid) for pid in psutil.pids() if _group(pid) == worker.pid],
    )
    return int(rows[0][0])


def _group(pid: int) -> int:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return 0


def freeze_worker_with_claims(stack: LocalStack) -> Program:
    """Freeze a worker while it has claims; return it."""

    def freeze() -> Program | None:
        for worker in stack.workers():
            if stack.freeze_while(worker.name, lambda: claim_count(stack, worker)):  # noqa: B023
                return worker
        return None

    frozen = until(freeze, "a worker has claims", every=SHORT_INTERVAL)
    assert frozen is not None
    return frozen


def reaped_count(stack: LocalStack, batch: str) -> int:
    """Return how many requests of a batch were released from workers with an expired lease."""
    rows = stack.query(
        """SELECT coalesce(sum(lines), 0) FROM request_events
           WHERE batch_id = :batch AND detail = 'The worker stopped responding'""",
        batch=batch.removeprefix("batch_"),
    )
    return int(rows[0][0])


def test_batch_survives_killed_worker_with_claims(
    breakable: LocalStack, file: str, assert_survives: Callable[[str], None]
) -> None:
    batch = breakable.submit(file)
    worker = freeze_worker_with_claims(breakable)
    breakable.kill(worker.name)
    assert_survives(batch)
    assert reaped_count(breakable, batch) > 0


def test_batch_survives_killed_workers_and_scheduler(
    breakable: LocalStack, file: str, assert_survives: Callable[[str], None]
) -> None:
    batch = breakable.submit(file)
    wait_for_progress(breakable, batch)
    for name in ["schedule", *(worker.name for worker in breakable.workers())]:
        breakable.kill(name)
    assert_survives(batch)


def test_batch_survives_worker_frozen_past_its_lease(
    breakable: LocalStack, file: str, assert_survives: Callable[[str], None]
) -> None:
    batch = breakable.submit(file)
    worker = freeze_worker_with_claims(breakable)
    try:
        until(lambda: not claim_count(breakable, worker), "its claims are released")
    finally:
        breakable.resume(worker.name)
    assert_survives(batch)
    assert reaped_count(breakable, batch) > 0


def test_batch_survives_killed_finalize(
    breakable: LocalStack, file: str, assert_survives: Callable[[str], None]
) -> None:
    before = breakable.objects()
    batch = freeze_during(
        breakable,
        "finalize",
        file,
        lambda: any("#" in name for name in breakable.objects() - before),
        missed=lambda batch: breakable.batch(batch)["status"] == "completed",
    )
    with breakable.locked("files"):
        breakable.kill("finalize")
        until(
            lambda: breakable.waits_for_lock("finalize"),
            "finalize has written the file again and completes the batch",
        )
        breakable.kill("finalize")
        assert breakable.batch(batch)["status"] == "finalizing"
    assert_survives(batch)


def test_batch_survives_killed_broker(
    breakable: LocalStack, file: str, assert_survives: Callable[[str], None]
) -> None:
    pid = breakable.program("broker").pid
    assert pid is not None
    os.killpg(pid, signal.SIGSTOP)
    try:
        batch = breakable.submit(file)
        waiting = breakable.query("SELECT 1 FROM outbox WHERE subject = :batch", batch=batch)
        assert waiting, "the event is in the outbox"
    finally:
        breakable.kill("broker")
    until(
        lambda: breakable.query("SELECT 1 FROM local_broker.deliveries WHERE trigger = 'split'"),
        "the event is being delivered to split",
        every=SHORT_INTERVAL,
    )
    breakable.kill("broker")
    wait_for_progress(breakable, batch)
    breakable.kill("broker")
    assert_survives(batch)


def test_batch_survives_killed_postgres(
    breakable: LocalStack, file: str, assert_survives: Callable[[str], None]
) -> None:
    batch = breakable.submit(file)
    wait_for_progress(breakable, batch)
    breakable.kill("postgres")
    assert_survives(batch)


def test_batch_survives_killed_create_batch_read_and_router(
    breakable: LocalStack, file: str, assert_survives: Callable[[str], None]
) -> None:
    def create() -> str:
        return breakable.client.batches.create(
            input_file_id=file,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_headers={"Idempotency-Key": "killed"},
        ).id

    with ThreadPoolExecutor(1) as pool:
        with breakable.locked("batches"):
            created = pool.submit(create)
            until(lambda: breakable.waits_for_lock("create_batch"), "create-batch stores the batch")
            breakable.kill("create-batch")
        batch = created.result(timeout=60)
    assert create() == batch
    wait_for_progress(breakable, batch)
    breakable.kill("read")
    breakable.kill("router")
    assert_survives(batch)


def test_upload_killed_mid_body_stores_no_file(breakable: LocalStack) -> None:
    before, sent = breakable.objects(), threading.Event()
    boundary = "tide"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    )

    def body() -> Iterator[bytes]:
        yield head.encode()
        yield chat_file(REQUESTS) * 4
        until(lambda: breakable.objects() - before, "the store has a part of the file")
        breakable.kill("upload")
        sent.set()
        yield b"\n" * 1000

    with suppress(httpx.TransportError):
        answer = httpx.post(
            f"{breakable.base_url}/v1/files",
            headers={
                "Authorization": f"Bearer {breakable.api_key}",
                "Content-Type": f"multipart/form-data; boundary={boundary}",
            },
            content=body(),
            timeout=60,
        )
        assert answer.status_code >= 500
    assert sent.is_set()
    complete = {name for name in breakable.objects() - before if "#" not in name}
    assert not complete
    assert not breakable.query("SELECT 1 FROM files WHERE filename = 'a.jsonl'")
    assert breakable.upload(chat_file(10))

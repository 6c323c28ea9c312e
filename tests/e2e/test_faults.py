"""SIGKILL to each process in turn, during a batch of 20,000 lines: it still ends, complete and correct.

No test waits for a guessed moment: it watches the database, the object store or the process tree
until the victim is seen in the middle of its work.
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

LINES = 20_000
SETTINGS = {
    "LOWTIDE_SIMULATED_LATENCY": "0",
    "LOWTIDE_SIMULATED_TOKENS": "120",
    "LOWTIDE_SIMULATED_INTERRUPTION_RATE": "0.02",
    "LOWTIDE_LEASE_DURATION": "3",
    "LOWTIDE_DATABASE_TIMEOUT": "5",
    "LOWTIDE_STALLED_AFTER": "5",
    "LOWTIDE_WORKER_POLL_CAP": "1",
}
CLOSELY = 0.002
"""Seconds between two looks at something that is over in a moment."""


@pytest.fixture(scope="module")
def breakable(make_stack: StackFactory) -> LocalStack:
    """A stack to break."""
    return make_stack(SETTINGS)


@pytest.fixture(scope="module")
def source() -> bytes:
    """The input file."""
    return chat_file(LINES)


@pytest.fixture(scope="module")
def file(breakable: LocalStack, source: bytes) -> str:
    """The input file's id."""
    return breakable.upload(source)


@pytest.fixture
def survive(breakable: LocalStack, source: bytes) -> Callable[[str], None]:
    """Assert that a batch ends complete and correct by itself."""

    def check(batch: str) -> None:
        breakable.finish(batch, source, answers=simulated_answer, within=150)

    return check


@pytest.fixture(autouse=True)
def _healed(breakable: LocalStack) -> Iterator[None]:
    """Leave no test with what the one before it broke."""
    yield
    until(
        lambda: all(program.state == "ready" for program in breakable.programs().values()),
        "every process is ready again",
    )


def results(stack: LocalStack, batch: str) -> int:
    """Return how many lines of a batch have ended; 0 while the database is away."""
    rows = stack.attempt(
        "SELECT count(*) FROM results WHERE batch_id = :batch",
        batch=batch.removeprefix("batch_"),
    )
    return rows[0][0] if rows else 0


def half_way(stack: LocalStack, batch: str) -> None:
    """Wait until some lines have ended and some have not."""
    ended = until(lambda: results(stack, batch), "the batch makes progress")
    assert ended < LINES


def catch_during(
    stack: LocalStack,
    name: str,
    file: str,
    look: Callable[[], object],
    *,
    missed: Callable[[str], object],
) -> str:
    """Stop a process in the middle of its work on a new batch; return the batch.

    What takes a blink can be `missed` on a busy machine: then the next batch is watched.
    """
    for _ in range(4):
        batch = stack.submit(file)
        while not stack.catch(name, look):
            if missed(batch):
                break
        else:
            return batch
    pytest.fail(f"{name} was never seen in the middle of its work")


def is_splitting(stack: LocalStack) -> bool:
    """Whether split is copying lines at this moment, in a transaction that is still open."""
    return bool(
        stack.attempt(
            """SELECT 1 FROM pg_stat_activity WHERE application_name = 'lowtide split'
               AND state IN ('active', 'idle in transaction') AND query LIKE '%COPY incoming%'"""
        )
    )


def test_split(breakable: LocalStack, file: str, survive: Callable[[str], None]) -> None:
    with breakable.locked("queue"):
        batch = catch_during(
            breakable,
            "split",
            file,
            lambda: is_splitting(breakable),
            missed=lambda _: breakable.waits_for_lock("split"),
        )
        breakable.kill("split")
        until(lambda: breakable.waits_for_lock("split"), "split is through the file once more")
        breakable.kill("split")
        assert breakable.batch(batch)["status"] == "validating"
        assert not breakable.query("SELECT 1 FROM requests WHERE batch_id = :b", b=batch[6:])
    survive(batch)


def held_lines(stack: LocalStack, worker: Program) -> int:
    """Return how many lines the processes of a worker hold under their lease."""
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


def catch_with_lines(stack: LocalStack) -> Program:
    """Stop a worker at a moment at which it holds lines; return it."""

    def look() -> Program | None:
        for worker in stack.workers():
            if stack.catch(worker.name, lambda: held_lines(stack, worker)):  # noqa: B023
                return worker
        return None

    caught = until(look, "a worker holds lines", every=CLOSELY)
    assert caught is not None
    return caught


def reaped_lines(stack: LocalStack, batch: str) -> int:
    """Return how many lines of a batch were taken from workers that had gone silent."""
    rows = stack.query(
        """SELECT coalesce(sum(lines), 0) FROM request_events
           WHERE batch_id = :batch AND detail = 'The worker stopped responding'""",
        batch=batch.removeprefix("batch_"),
    )
    return int(rows[0][0])


def test_worker_holding_lines(
    breakable: LocalStack, file: str, survive: Callable[[str], None]
) -> None:
    batch = breakable.submit(file)
    worker = catch_with_lines(breakable)
    breakable.kill(worker.name)
    survive(batch)
    assert reaped_lines(breakable, batch) > 0


def test_all_workers_and_the_scheduler(
    breakable: LocalStack, file: str, survive: Callable[[str], None]
) -> None:
    batch = breakable.submit(file)
    half_way(breakable, batch)
    for name in ["schedule", *(worker.name for worker in breakable.workers())]:
        breakable.kill(name)
    survive(batch)


def test_worker_that_sleeps_past_its_lease(
    breakable: LocalStack, file: str, survive: Callable[[str], None]
) -> None:
    batch = breakable.submit(file)
    worker = catch_with_lines(breakable)
    try:
        until(lambda: not held_lines(breakable, worker), "its lines are given to others")
    finally:
        breakable.go_on(worker.name)
    survive(batch)
    assert reaped_lines(breakable, batch) > 0


def test_finalize(breakable: LocalStack, file: str, survive: Callable[[str], None]) -> None:
    before = breakable.objects()
    batch = catch_during(
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
            "finalize has written the file once more, and closes the batch",
        )
        breakable.kill("finalize")
        assert breakable.batch(batch)["status"] == "finalizing"
    survive(batch)


def test_dispatcher(breakable: LocalStack, file: str, survive: Callable[[str], None]) -> None:
    pid = breakable.program("broker").pid
    assert pid is not None
    os.killpg(pid, signal.SIGSTOP)
    try:
        batch = breakable.submit(file)
        assert breakable.query("SELECT 1 FROM outbox"), "its event waits in the outbox"
    finally:
        breakable.kill("broker")
    until(
        lambda: breakable.query("SELECT 1 FROM local_broker.deliveries WHERE trigger = 'split'"),
        "split is being told",
        every=CLOSELY,
    )
    breakable.kill("broker")
    half_way(breakable, batch)
    breakable.kill("broker")
    survive(batch)


def test_postgres(breakable: LocalStack, file: str, survive: Callable[[str], None]) -> None:
    batch = breakable.submit(file)
    half_way(breakable, batch)
    breakable.kill("postgres")
    survive(batch)


def test_create_batch_read_and_router(
    breakable: LocalStack, file: str, survive: Callable[[str], None]
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
            until(lambda: breakable.waits_for_lock("create_batch"), "it stores the batch")
            breakable.kill("create-batch")
        batch = created.result(timeout=60)
    assert create() == batch
    half_way(breakable, batch)
    breakable.kill("read")
    breakable.kill("router")
    survive(batch)


def test_upload_mid_body(breakable: LocalStack) -> None:
    before, sent = breakable.objects(), threading.Event()
    boundary = "tide"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    )

    def body() -> Iterator[bytes]:
        yield head.encode()
        yield chat_file(LINES) * 4
        until(lambda: breakable.objects() - before, "the store holds a part of the file")
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
    finished = {name for name in breakable.objects() - before if "#" not in name}
    assert not finished
    assert not breakable.query("SELECT 1 FROM files WHERE filename = 'a.jsonl'")
    assert breakable.upload(chat_file(10))

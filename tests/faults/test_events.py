"""Brokers that hang, refuse or are down delay neither callers nor other events nor batches."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.database.connections import acting_for
from lowtide.local.ports import HOST, free_port
from lowtide.tenants.audit import note
from tests.chaos.control import Helper
from tests.chaos.system import ProxiedStack
from tests.conftest import API_KEY
from tests.e2e.questions import chat_file
from tests.e2e.waiting import until
from tests.faults.servers import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lowtide.core.ids import BatchId
    from tests.conftest import Database
    from tests.e2e.stacks import LocalStack
    from tests.faults.servers import Server
    from tests.worlds import World


TICK = {
    "ce-specversion": "1.0",
    "ce-id": "1",
    "ce-source": "/tests",
    "ce-type": "dev.knative.sources.ping",
}
SINK_TIMEOUT = 5.0
OUTAGE_SECONDS = 20.0
POISON = {
    "specversion": "1.0",
    "id": "poison",
    "type": "dev.lowtide.batch.created",
    "source": "/tests",
    "extra": {"an": "object"},
}
STRUCTURED = {"content-type": "application/cloudevents+json"}


@pytest.fixture(scope="session")
def database_name() -> str:
    """The name of this module's database."""
    return "shared_faults_events"


class Broker:
    """A broker under the test's control; `answer` returns the status for each event or blocks."""

    def __init__(self) -> None:
        self.address = ""
        self.subjects: list[str] = []
        self.events: list[tuple[Mapping[str, str], bytes]] = []
        self.answer: Callable[[str], int] = lambda _: 202
        self.released = threading.Event()

    def take(self, subject: str) -> int:
        self.subjects.append(subject)
        return self.answer(subject)

    def hang(self) -> int:
        self.released.wait(60)
        return 202


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.events.append(
                ({name.lower(): value for name, value in self.headers.items()}, body)
            )
            self.send_response(made.take(self.headers["ce-subject"]))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        made.address = f"http://{HOST}:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield made
        made.released.set()
        server.shutdown()
        thread.join()


@contextmanager
def _function(
    name: str, database: Database, role: str, broker: Broker, folder: Path, **settings: str
) -> Iterator[Server]:
    settings |= {
        "LOWTIDE_DATABASE_URL": database.url(role),
        "K_SINK": broker.address,
        "LOWTIDE_EVENT_SINK_TIMEOUT": str(SINK_TIMEOUT),
    }
    kind = "http" if name == "create_batch" else "cloudevent"
    with serving(name, folder / "objects", settings, kind=kind) as server:
        yield server


def _create_seconds(server: Server, world: World, count: int) -> list[float]:
    """Return the seconds of each of `count` calls of `POST /v1/batches`."""
    file = f"file-{world.file().id.hex}"
    seconds: list[float] = []
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as client:
        for _ in range(count):
            began = time.monotonic()
            answer = client.post("/v1/batches", json={"input_file_id": file})
            seconds.append(time.monotonic() - began)
            assert answer.status_code == 200, answer.text
    return seconds


def test_batch_creation_does_not_wait_for_hanging_broker(
    world: World, shared_database: Database, broker: Broker, tmp_path: Path
) -> None:
    with _function("create_batch", shared_database, "api", broker, tmp_path) as server:
        _create_seconds(server, world, 5)
        broker.answer = lambda _: broker.hang()
        before = len(broker.subjects)
        hanging = _create_seconds(server, world, 20)
        until(lambda: len(broker.subjects) > before, "the broker has received an event")
        assert max(hanging) < SINK_TIMEOUT / 2, "no call waits for the broker"
        broker.released.set()


def _pending_batches(world: World, count: int) -> list[BatchId]:
    batches = [world.new_batch() for _ in range(count)]
    world.run("UPDATE outbox SET next_at = now()")
    return batches


def _tick(server: Server) -> None:
    answer = httpx.post(server.url, headers=TICK, timeout=60, trust_env=False)
    assert (answer.status_code, answer.content) == (204, b"")


def test_stuck_event_delays_neither_others_nor_tick(
    world: World, shared_database: Database, broker: Broker, tmp_path: Path
) -> None:
    refused, hung, accepted = (f"batch_{batch.hex}" for batch in _pending_batches(world, 3))

    def answer(subject: str) -> int:
        return broker.hang() if subject == hung else {refused: 500}.get(subject, 202)

    broker.answer = answer
    with _function("schedule", shared_database, "worker", broker, tmp_path) as server:
        began = time.monotonic()
        _tick(server)
        assert time.monotonic() - began < SINK_TIMEOUT, "the tick waits for no event"

        def waiting() -> dict[str, int]:
            rows = world.rows("SELECT subject, attempts FROM outbox")
            return {row.subject: row.attempts for row in rows}

        until(lambda: waiting() == {refused: 1, hung: 1}, "the third event was delivered")
        assert set(broker.subjects) == {refused, hung, accepted}
        broker.released.set()


def _audit(world: World, *subjects: str) -> None:
    with acting_for(world.api, DEFAULT_TENANT) as connection:
        note(connection, DEFAULT_TENANT, "Zoë (api key 1)", "files.download", subjects)


def test_audit_event_survives_a_scheduler_killed_before_its_answer(
    world: World, shared_database: Database, broker: Broker, tmp_path: Path
) -> None:
    _audit(world, "file-1")
    broker.answer = lambda _: broker.hang()
    with _function("schedule", shared_database, "worker", broker, tmp_path) as server:
        _tick(server)
        until(lambda: broker.events, "the event was sent")
        for process in [*psutil.Process(server.pid).children(), psutil.Process(server.pid)]:
            process.kill()
    broker.answer = lambda _: 202
    broker.released.set()
    world.run("UPDATE audit_outbox SET next_at = now()")
    with _function("schedule", shared_database, "worker", broker, tmp_path) as server:
        _tick(server)
        until(lambda: not world.rows("SELECT 1 FROM audit_outbox"), "the event was accepted")
    (first, body), *others = broker.events
    assert others
    assert {headers["ce-id"] for headers, _ in others} == {first["ce-id"]}, "a known duplicate"
    assert {body for _, body in others} == {body}
    assert first["ce-type"] == "dev.lowtide.audit"
    entry = json.loads(body)
    assert (entry["tenant"], entry["actor"], entry["action"], entry["subject"]) == (
        "default", "Zoë (api key 1)", "files.download", "file-1",
    )  # fmt: skip


def test_audit_events_that_hang_delay_no_batch(
    world: World, shared_database: Database, broker: Broker, tmp_path: Path
) -> None:
    _audit(world, *(f"file-{number}" for number in range(50)))
    (batch,) = (f"batch_{each.hex}" for each in _pending_batches(world, 1))
    broker.answer = lambda subject: 202 if subject == batch else broker.hang()
    with _function("schedule", shared_database, "worker", broker, tmp_path) as server:
        _tick(server)
        until(lambda: batch in broker.subjects, "the batch was announced")
        seen = broker.subjects[: broker.subjects.index(batch)]
        assert len(seen) <= 8, "it waits for no audit event to time out"
        broker.released.set()


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ProxiedStack, Helper]]:
    """A stack with a synchronous broker without storage, like Knative's default.

    Publishers reach it through a proxy; ticks reach the scheduler directly.
    """
    folder, port = tmp_path_factory.mktemp("events"), free_port()
    settings = {
        "LOWTIDE_SIMULATED_LATENCY": "0.01",
        "LOWTIDE_EVENT_SINK_TIMEOUT": "1",
        "LOWTIDE_WORKER_POLL_CAP": "1",
        # The first tick with a working broker sends the pending events.
        "LOWTIDE_STALLED_AFTER": "8",
    }
    stack = ProxiedStack(folder / "stack", settings, synchronous_broker=True)
    stack.data_dir.mkdir()
    stack.via = {"broker": port}
    proxy = Helper.start(
        "tests.chaos.proxy", [stack.data_dir, "0", f"broker={port}"], folder / "proxy.log"
    )
    try:
        stack.up()
        yield stack, proxy
    finally:
        proxy.stop()
        stack.discard()
        until(stack.reap, "the supervisor has exited")


@pytest.fixture
def stack(proxied: tuple[ProxiedStack, Helper]) -> ProxiedStack:
    return proxied[0]


@pytest.fixture
def proxy(proxied: tuple[ProxiedStack, Helper]) -> Iterator[Helper]:
    yield proxied[1]
    proxied[1].order(mode="heal")


def _send_attempts(stack: LocalStack, batch: str) -> list[int]:
    """Return the attempts of each undelivered event of a batch."""
    rows = stack.query("SELECT attempts FROM outbox WHERE subject = :batch", batch=batch)
    return [row.attempts for row in rows]


def test_every_event_of_batch_is_acknowledged(stack: LocalStack) -> None:
    batch = stack.submit(stack.upload(chat_file(5)))
    assert stack.follow(batch, within=180)[-1]["status"] == "completed"
    until(lambda: not _send_attempts(stack, batch), "the outbox is empty")
    assert "given up" not in stack.log()


@pytest.mark.parametrize("fault", ["partition", "refuse"])
def test_batch_continues_once_broker_is_back(stack: LocalStack, proxy: Helper, fault: str) -> None:
    file = stack.upload(chat_file(5))
    unsent = stack.log().count("event.unsent")
    began = time.monotonic()
    proxy.order(mode=fault, seconds=600)
    batch = stack.submit(file)
    until(lambda: stack.log().count("event.unsent") > unsent, "sending the event has failed")
    until(
        lambda: time.monotonic() - began > OUTAGE_SECONDS and any(_send_attempts(stack, batch)),
        "the outage has lasted long enough and the scheduler has retried",
    )
    assert stack.batch(batch)["status"] == "validating"
    proxy.order(mode="heal")
    assert stack.follow(batch, within=180)[-1]["status"] == "completed"
    until(lambda: not _send_attempts(stack, batch), "the outbox is empty")


def _post_event(port: int | None, event: dict[str, Any]) -> int:
    return httpx.post(
        f"http://{HOST}:{port}/",
        content=json.dumps(event).encode(),
        headers=STRUCTURED,
        timeout=60,
        trust_env=False,
    ).status_code


@pytest.mark.parametrize("name", ["broker", "split", "finalize", "schedule"])
def test_malformed_event_gets_400(stack: LocalStack, name: str) -> None:
    assert _post_event(stack.program(name).port, POISON) == 400
    assert stack.query("SELECT 1 FROM local_broker.deliveries") == []
    valid = {key: value for key, value in POISON.items() if key != "extra"}
    assert _post_event(stack.program(name).port, valid) in {202, 204}

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import text

from lowtide.local import files
from lowtide.local.broker import DATABASE_VARIABLE, SYNCHRONOUS_VARIABLE
from lowtide.local.database import engine
from lowtide.local.ports import free_port

from .conftest import eventually, new_database, write_overlay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from lowtide.local.database import EmbeddedPostgres

TRIGGERS = """
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: work}
spec:
  broker: default
  filter: {attributes: {type: work}}
  subscriber: {ref: {apiVersion: v1, kind: Service, name: worker}}
  delivery: {retry: 20, backoffPolicy: linear, backoffDelay: PT0.05S, timeout: PT5S}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: all}
spec:
  broker: default
  subscriber: {ref: {apiVersion: v1, kind: Service, name: observer}}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: doomed}
spec:
  broker: default
  filter: {attributes: {type: doomed}}
  subscriber: {ref: {apiVersion: v1, kind: Service, name: worker}}
  delivery:
    retry: 2
    backoffDelay: PT0.05S
    deadLetterSink: {ref: {apiVersion: v1, kind: Service, name: morgue}}
---
apiVersion: sources.knative.dev/v1
kind: PingSource
metadata: {name: tick, namespace: lowtide}
spec:
  schedule: "*/1 * * * * *"
  contentType: application/json
  data: '{"a": 1}'
  sink: {ref: {apiVersion: v1, kind: Service, name: ticked}}
"""


class Subscriber:
    """Collect events by service and answer with `answer` and `reply`."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[dict[str, str], bytes]]] = {}
        self.answer: Callable[[str, int], int] = lambda _service, _count: 204
        self.reply: tuple[dict[str, str], bytes] = ({}, b"")
        self.address = ""

    def take(self, service: str, headers: dict[str, str], body: bytes) -> int:
        events = self.events.setdefault(service, [])
        events.append((headers, body))
        return self.answer(service, len(events))

    def ids(self, service: str) -> list[str]:
        return [headers["ce-id"] for headers, _ in self.events.get(service, [])]


@contextmanager
def subscribing() -> Iterator[Subscriber]:
    subscriber = Subscriber()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = subscriber.take(self.path.strip("/"), headers, body)
            self.send_response(status)
            headers, body = subscriber.reply
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        subscriber.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield subscriber
        server.shutdown()
        thread.join()


class Broker:
    """A broker process that can be killed and restarted."""

    def __init__(self, root: Path, database_url: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.root = root
        self._environment = {**os.environ, DATABASE_VARIABLE: database_url, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "lowtide.local.broker", "--root", str(self.root)),
                *("--data-dir", str(self.root), "--port", str(self.port)),
            ],
            env=self._environment,
        )
        eventually(self._ready, within=20)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(10) in {0, -9}

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def send(self, kind: str, event_id: str | None = None, data: object = None) -> str:
        event_id = event_id or str(uuid.uuid4())
        assert self.post(kind, event_id, data) == 202
        return event_id

    def post(
        self, kind: str, event_id: str | None = None, data: object = None, *, within: float = 30
    ) -> int:
        event_id = event_id or str(uuid.uuid4())
        headers = {
            "ce-specversion": "1.0",
            "ce-id": event_id,
            "ce-type": kind,
            "ce-source": "/lowtide/test",
            "ce-traceparent": "00-1-2-00",
            "content-type": "application/json",
        }
        content = json.dumps(data).encode()
        return httpx.post(self.url, headers=headers, content=content, timeout=within).status_code


@pytest.fixture(scope="module")
def shared_subscriber() -> Iterator[Subscriber]:
    with subscribing() as made:
        yield made


@pytest.fixture(scope="module")
def database(server: EmbeddedPostgres) -> Iterator[Engine]:
    made = engine(new_database(server))
    yield made
    made.dispose()


@pytest.fixture(scope="module")
def shared_broker(tmp_path_factory: pytest.TempPathFactory, database: Engine) -> Iterator[Broker]:
    tmp_path = tmp_path_factory.mktemp("broker")
    write_overlay(tmp_path, {"triggers.yaml": TRIGGERS})
    made = Broker(tmp_path, database.url.render_as_string(hide_password=False))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def subscriber(shared_subscriber: Subscriber) -> Subscriber:
    shared_subscriber.events.clear()
    shared_subscriber.answer = lambda _service, _count: 204
    shared_subscriber.reply = ({}, b"")
    return shared_subscriber


@pytest.fixture
def broker(shared_broker: Broker, subscriber: Subscriber, database: Engine) -> Iterator[Broker]:
    services = ("worker", "observer", "morgue", "ticked")
    files.write_endpoints(
        shared_broker.root, {name: [f"{subscriber.address}/{name}"] for name in services}
    )
    yield shared_broker
    subscriber.answer = lambda _service, _count: 204
    subscriber.reply = ({}, b"")
    eventually(lambda: pending(database), lambda count: count == 0)


def pending(database: Engine) -> int:
    with database.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM local_broker.deliveries")) or 0)


def test_events_reach_every_matching_trigger(
    broker: Broker, subscriber: Subscriber, database: Engine
) -> None:
    work = broker.send("work", data={"batch": 1})
    other = broker.send("other")
    eventually(lambda: set(subscriber.ids("observer")) == {work, other})
    eventually(lambda: subscriber.ids("worker") == [work])
    headers, body = subscriber.events["worker"][0]
    assert headers["ce-type"] == "work"
    assert headers["ce-source"] == "/lowtide/test"
    assert headers["ce-traceparent"] == "00-1-2-00"
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"batch": 1}
    eventually(lambda: pending(database), lambda count: count == 0)


def test_structured_events_are_accepted_and_bad_events_refused(
    broker: Broker, subscriber: Subscriber
) -> None:
    event = {"specversion": "1.0", "id": "s1", "type": "work", "source": "/x", "data": {"a": "ü"}}
    structured = {"content-type": "application/cloudevents+json"}
    assert httpx.post(broker.url, json=event, headers=structured).status_code == 202
    eventually(lambda: subscriber.ids("worker") == ["s1"])
    assert json.loads(subscriber.events["worker"][0][1]) == {"a": "ü"}
    for content, headers in (
        (b"{}", {}),
        (b"{", structured),
        (b'{"specversion": "1.0"}', structured),
        (b"{}", {"ce-id": "1", "ce-specversion": "1.0"}),
        (b"{}", {"ce-id": "1", "ce-specversion": "9", "ce-type": "a", "ce-source": "b"}),
        (json.dumps(event | {"extra": {"an": "object"}}).encode(), structured),
    ):
        assert httpx.post(broker.url, content=content, headers=headers).status_code == 400


def test_failed_delivery_is_retried(
    broker: Broker, subscriber: Subscriber, database: Engine
) -> None:
    subscriber.answer = lambda service, count: 500 if service == "worker" and count < 4 else 200
    sent = broker.send("work")
    eventually(lambda: subscriber.ids("worker") == [sent] * 4)
    eventually(lambda: pending(database), lambda count: count == 0)


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (400, 1)], ids=["retried", "refused"])
def test_undeliverable_event_goes_to_dead_letter_sink(
    broker: Broker, subscriber: Subscriber, database: Engine, status: int, tries: int
) -> None:
    subscriber.answer = lambda service, _count: status if service == "worker" else 200
    sent = broker.send("doomed")
    eventually(lambda: subscriber.ids("morgue") == [sent])
    assert subscriber.ids("worker") == [sent] * tries
    eventually(lambda: pending(database), lambda count: count == 0)


def test_duplicate_of_pending_event_is_absorbed(broker: Broker, subscriber: Subscriber) -> None:
    release = threading.Event()

    def answer(service: str, _count: int) -> int:
        if service == "worker":
            release.wait(10)
        return 200

    subscriber.answer = answer
    for _ in range(3):
        broker.send("work", event_id="same")
    eventually(lambda: subscriber.ids("worker"))
    release.set()
    last = broker.send("work")
    eventually(lambda: last in subscriber.ids("worker"))
    assert subscriber.ids("worker") == ["same", last]


def test_kill_9_loses_no_event(broker: Broker, subscriber: Subscriber, database: Engine) -> None:
    subscriber.answer = lambda _service, _count: 503
    sent = {broker.send("work") for _ in range(20)}
    broker.kill()
    assert pending(database) >= 20
    subscriber.answer = lambda _service, _count: 204
    broker.start()
    eventually(lambda: pending(database), lambda count: count == 0)
    assert set(subscriber.ids("worker")) == sent


def test_late_subscriber_gets_its_events(broker: Broker, subscriber: Subscriber) -> None:
    files.write_endpoints(broker.root, {"observer": [f"{subscriber.address}/observer"]})
    sent = broker.send("work")
    files.write_endpoints(broker.root, {"worker": [f"{subscriber.address}/worker"]})
    eventually(lambda: subscriber.ids("worker") == [sent])


def test_pings_arrive_on_schedule(broker: Broker, subscriber: Subscriber) -> None:
    assert broker.port
    eventually(lambda: len(subscriber.ids("ticked")) >= 2)
    headers, body = subscriber.events["ticked"][0]
    assert headers["ce-type"] == "dev.knative.sources.ping"
    assert headers["ce-source"] == "/apis/v1/namespaces/lowtide/pingsources/tick"
    assert json.loads(body) == {"a": 1}
    assert len(set(subscriber.ids("ticked"))) == len(subscriber.ids("ticked"))


EVENT = {"ce-specversion": "1.0", "ce-id": "r", "ce-type": "t", "ce-source": "/s"}


@pytest.mark.parametrize(
    ("reply", "tries"),
    [
        pytest.param(({}, b"OK"), 3, id="no event"),
        pytest.param(
            ({"content-type": "application/cloudevents+json"}, b"{}"), 3, id="incomplete event"
        ),
        pytest.param((EVENT, b"{}"), 1, id="an event"),
    ],
)
def test_response_body_that_is_no_event_fails_delivery(
    broker: Broker,
    subscriber: Subscriber,
    database: Engine,
    reply: tuple[dict[str, str], bytes],
    tries: int,
) -> None:
    subscriber.answer = lambda _service, _count: 200
    subscriber.reply = reply
    sent = broker.send("doomed")
    eventually(lambda: pending(database), lambda count: count == 0)
    assert subscriber.ids("worker") == [sent] * tries
    assert subscriber.ids("morgue") == [sent] * (tries > 1)


def test_unsendable_event_of_earlier_release_is_dropped(
    broker: Broker, subscriber: Subscriber, database: Engine
) -> None:
    with database.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO local_broker.deliveries (event_id, source, trigger, headers, body)
                VALUES ('poison', '/s', 'doomed', '{"ce-id": "poison", "ce-extra": {"a": 1}}', '')
            """)
        )
    other = broker.send("doomed")
    eventually(lambda: other in subscriber.ids("worker"))
    eventually(lambda: pending(database), lambda count: count == 0)
    assert "poison" not in subscriber.ids("worker")


@pytest.fixture(scope="module")
def shared_synchronous_broker(
    tmp_path_factory: pytest.TempPathFactory, database: Engine
) -> Iterator[Broker]:
    tmp_path = tmp_path_factory.mktemp("synchronous")
    write_overlay(tmp_path, {"triggers.yaml": TRIGGERS})
    url = database.url.render_as_string(hide_password=False)
    made = Broker(tmp_path, url, **{SYNCHRONOUS_VARIABLE: "1"})
    made.start()
    yield made
    made.stop()


@pytest.fixture
def synchronous(shared_synchronous_broker: Broker, subscriber: Subscriber) -> Broker:
    services = ("worker", "observer", "morgue", "ticked")
    endpoints = {name: [f"{subscriber.address}/{name}"] for name in services}
    files.write_endpoints(shared_synchronous_broker.root, endpoints)
    return shared_synchronous_broker


@pytest.mark.parametrize(
    ("kind", "answers", "status", "tries"),
    [
        pytest.param("work", [204], 202, 1, id="delivered"),
        pytest.param("work", [503, 503, 204], 202, 3, id="delivered after retries"),
        pytest.param("work", [400], 500, 1, id="refused"),
        pytest.param("doomed", [500, 500, 500], 202, 3, id="sent to the dead letter sink"),
        pytest.param("nobody wants it", [], 202, 0, id="no trigger"),
    ],
)
def test_synchronous_broker_answers_with_delivery_result(
    synchronous: Broker,
    subscriber: Subscriber,
    database: Engine,
    kind: str,
    answers: list[int],
    status: int,
    tries: int,
) -> None:
    subscriber.answer = lambda service, count: answers[count - 1] if service == "worker" else 204
    assert synchronous.post(kind) == status
    assert len(subscriber.ids("worker")) == tries
    assert pending(database) == 0, "no event is stored"


def test_synchronous_broker_stops_retrying_when_publisher_leaves(
    synchronous: Broker, subscriber: Subscriber
) -> None:
    release = threading.Event()
    subscriber.answer = lambda service, _count: (
        500 if service == "worker" and release.wait(30) else 204
    )
    with pytest.raises(httpx.ReadTimeout):
        synchronous.post("work", "left", within=0.5)
    release.set()
    subscriber.answer = lambda _service, _count: 204
    synchronous.post("work", "next")
    assert subscriber.ids("worker") == ["left", "next"], "the abandoned event is not retried"

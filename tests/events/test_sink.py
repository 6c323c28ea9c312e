"""CloudEvents over HTTP in binary mode; failures of the sink are not raised."""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from cloudevents.http import CloudEvent

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId
from lowtide.events.inbox import batch_of, received
from lowtide.events.model import Event, EventType, batch_event
from lowtide.events.publisher import HttpSink, NoSink
from lowtide.telemetry.tracing import UNTRACED, TraceContext, log_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH = BatchId(uuid.UUID(int=7))
EVENT = batch_event(uuid.UUID(int=1), EventType.BATCH_DRAINED, DEFAULT_TENANT, BATCH)


@contextmanager
def _server(status: int) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    received: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/x", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _publish(url: str, event: Event = EVENT) -> bool:
    sink = HttpSink(url, source="/lowtide/test", timeout=2)
    try:
        return sink.publish(event)
    finally:
        if sink._client is not None:
            sink._client.close()


@pytest.mark.parametrize(
    ("status", "accepted"),
    [(200, True), (202, True), (204, True), (301, False), (400, False), (429, False), (500, False)],
)
def test_event_is_posted_in_binary_mode(status: int, *, accepted: bool) -> None:
    with _server(status) as (url, received):
        assert _publish(url) is accepted
    ((headers, body),) = received
    assert {
        key: value for key, value in headers.items() if key.startswith("ce-") and key != "ce-time"
    } == {
        "ce-id": str(uuid.UUID(int=1)),
        "ce-type": "dev.lowtide.batch.drained",
        "ce-source": "/lowtide/test",
        "ce-subject": f"batch_{BATCH.hex}",
        "ce-specversion": "1.0",
    }
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"batch_id": f"batch_{BATCH.hex}"}


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://127.0.0.1:1/", id="refused"),
        pytest.param("http://[", id="invalid address"),
        pytest.param("nonsense", id="no scheme"),
        pytest.param("ftp://127.0.0.1/", id="another scheme"),
        pytest.param("http://127.0.0.1:99999/", id="invalid port"),
        pytest.param("http://exa mple\x00/", id="invalid host"),
    ],
)
def test_unreachable_sink_does_not_raise(url: str) -> None:
    assert _publish(url) is False


def test_missing_sink_accepts_nothing() -> None:
    assert NoSink().publish(EVENT) is False


NO_BATCH: list[Any] = [
    None, {}, [], "x", 7, b"\xff", {"batch_id": None}, {"batch_id": 7}, {"batch_id": "x"},
    {"batch_id": [f"batch_{BATCH.hex}"]}, {"batch_id": f"file-{BATCH.hex}"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "batch"),
    [
        pytest.param({"batch_id": f"batch_{BATCH.hex}"}, BATCH, id="a batch"),
        pytest.param({"batch_id": f"batch_{BATCH.hex}", "more": 1}, BATCH, id="and more"),
        *(pytest.param(data, None, id=repr(data)[:30]) for data in NO_BATCH),
    ],
)
def test_batch_is_read_from_event(
    data: Any, batch: BatchId | None, caplog: pytest.LogCaptureFixture
) -> None:
    event: Any = CloudEvent({"type": "t", "source": "s", "id": "e" * 500}, data)
    assert batch_of(event) == batch
    assert [record.getMessage() for record in caplog.records] == (
        [] if batch else ["event.malformed"]
    )


TRACE = TraceContext("a" * 32, "b" * 16, True, "vendor=1")


@pytest.mark.parametrize(
    ("trace", "attributes"),
    [
        pytest.param(None, {}, id="none"),
        pytest.param(
            TRACE,
            {"traceparent": TRACE.traceparent, "tracestate": "vendor=1"},
            id="with state",
        ),
        pytest.param(
            replace(TRACE, state=""), {"traceparent": TRACE.traceparent}, id="without state"
        ),
    ],
)
def test_event_carries_trace_context(
    trace: TraceContext | None, attributes: dict[str, str]
) -> None:
    with _server(202) as (url, requests):
        assert _publish(url, replace(EVENT, trace=trace))
    [(headers, _)] = requests
    expected = {f"ce-{name}": value for name, value in attributes.items()} | attributes
    assert {name: value for name, value in headers.items() if "trace" in name} == expected


@pytest.mark.parametrize(
    ("attributes", "trace"),
    [
        pytest.param(
            {"traceparent": TRACE.traceparent, "tracestate": "vendor=1"}, TRACE, id="trace"
        ),
        pytest.param({"traceparent": "00-nonsense"}, None, id="malformed"),
        pytest.param({}, None, id="none"),
    ],
)
def test_event_processing_continues_its_trace(
    attributes: dict[str, str], trace: TraceContext | None, caplog: pytest.LogCaptureFixture
) -> None:
    event = _cloud_event({"subject": EVENT.subject, **attributes})
    with received(event, UNTRACED):
        assert UNTRACED.current() == trace
        assert log_fields()["batch_id"] == EVENT.subject
    with pytest.raises(Unavailable), received(event, UNTRACED):
        raise Unavailable("away")
    assert [record.message for record in caplog.records] == ["event.failed"]
    assert UNTRACED.current() is None


def _cloud_event(attributes: dict[str, str]) -> CloudEvent:
    all_attributes = {"type": EVENT.type.value, "source": "/test", **attributes}
    return CloudEvent(all_attributes, dict(EVENT.data))

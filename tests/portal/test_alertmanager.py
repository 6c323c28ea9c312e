"""Alerts, read from a stub of Alertmanager and from Alertmanager itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from lowtide.local.ports import free_port
from portal.components import alerts
from portal.components.alerts import MAX_SHOWN, Alertmanager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    OpenReader = Callable[[str], Alertmanager]
    from pathlib import Path

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BINARY = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")


RUNBOOKS = "https://git.example/docs/operations.md#"


def gettable(
    name: str,
    severity: str = "warning",
    summary: str = "Look.",
    minutes: int = 3,
    runbook: str | None = None,
) -> Any:
    """Return an alert as `GET /api/v2/alerts` returns it."""
    return {
        "annotations": {
            "summary": summary,
            "runbook_url": RUNBOOKS + name.lower() if runbook is None else runbook,
        },
        "endsAt": "2026-01-02T04:00:00.000Z",
        "fingerprint": "8a1f",
        "receivers": [{"name": "default"}],
        "startsAt": (NOW - timedelta(minutes=minutes)).isoformat().replace("+00:00", ".123Z"),
        "status": {"inhibitedBy": [], "silencedBy": [], "state": "active"},
        "updatedAt": "2026-01-02T03:04:05.000Z",
        "generatorURL": "javascript:alert(1)",
        "labels": {"alertname": name, "severity": severity},
    }


class StubServer:
    """A stub with a configurable answer; it records the requested paths."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b"[]"
        self.requested: list[str] = []
        self.unblocked = threading.Event()
        self.unblocked.set()
        self.url = ""

    def serve(self, *alerts: Any) -> None:
        self.body = json.dumps(alerts).encode()


@contextmanager
def serving() -> Iterator[StubServer]:
    """Serve on a free port."""
    stub = StubServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stub.requested.append(self.path)
            stub.unblocked.wait(10)
            self.send_response(stub.status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(stub.body)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}/prefix"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.unblocked.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[StubServer]:
    """A stub of Alertmanager."""
    with serving() as stub:
        yield stub


@pytest.fixture
def open_reader() -> Iterator[OpenReader]:
    """Open readers of a URL; all close after the test."""
    opened: list[Alertmanager] = []

    def read(url: str) -> Alertmanager:
        opened.append(Alertmanager(url, clock=lambda: NOW))
        return opened[-1]

    yield read
    for reader in opened:
        reader.close()


def test_firing_alerts_are_sorted_by_severity_and_age(
    server: StubServer, open_reader: OpenReader
) -> None:
    server.serve(
        gettable("LowtideQueueOld"),
        gettable("LowtideTickStalled", "critical", "<b>No tick</b>"),
        gettable("LowtideLong", minutes=90),
        gettable("LowtideOdd", "sev-9"),
    )
    reader = open_reader(server.url)
    assert reader.reachability is None
    reader.look()
    seen = reader.seen
    assert [alert.name for alert in seen.alerts] == [
        "LowtideTickStalled", "LowtideLong", "LowtideQueueOld", "LowtideOdd",
    ]  # fmt: skip
    first = seen.alerts[0]
    assert (first.severity, first.summary) == ("critical", "<b>No tick</b>")
    assert NOW - first.since == timedelta(minutes=3) - timedelta(milliseconds=123)
    assert (seen.more, seen.problem, seen.answered_at) == (0, None, NOW)
    url = urlsplit(server.requested[0])
    assert url.path == "/prefix/api/v2/alerts"
    assert parse_qs(url.query) == {
        "active": ["true"], "silenced": ["false"], "inhibited": ["false"],
        "unprocessed": ["false"], "filter": ['alertname=~"Lowtide.*"'],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "linked"),
    [
        (f"{RUNBOOKS}lowtidetickstalled", True),
        ("http://git.example/x", True),
        ("docs/operations.md#lowtidetickstalled", False),
        ("file:///srv/lowtide/docs/operations.md#lowtidetickstalled", False),
        ("javascript:alert(1)", False),
        ("https:", False),
        ("http://[x", False),
        ("", False),
    ],
)
def test_only_web_address_becomes_runbook_link(
    server: StubServer, open_reader: OpenReader, url: str, *, linked: bool
) -> None:
    server.serve(gettable("LowtideTickStalled", runbook=url))
    reader = open_reader(server.url)
    reader.look()
    assert [alert.runbook for alert in reader.seen.alerts] == [url if linked else ""]


def test_alerts_beyond_page_limit_are_only_counted(
    server: StubServer, open_reader: OpenReader
) -> None:
    server.serve(*(gettable(f"Lowtide{place}", summary="x" * 900) for place in range(70)))
    reader = open_reader(server.url)
    reader.look()
    assert (len(reader.seen.alerts), reader.seen.more) == (MAX_SHOWN, 50)
    assert {len(alert.summary) for alert in reader.seen.alerts} == {300}


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        pytest.param(503, b"", "responded with HTTP 503", id="server error"),
        pytest.param(302, b"", "responded with HTTP 302", id="redirect to sign-in"),
        pytest.param(200, b"<html>", "not a valid Alertmanager response", id="not JSON"),
        pytest.param(200, b'{"a": 1}', "not a valid Alertmanager response", id="other shape"),
        pytest.param(
            200,
            b'[{"labels": {}, "annotations": {}, "startsAt": "2026-01-02T03:04:05"}]',
            "not a valid Alertmanager response",
            id="time without zone",
        ),
        pytest.param(200, b"[" + b" " * 2_100_000, "response too large", id="too large"),
    ],
)
def test_invalid_response_keeps_last_alerts(
    server: StubServer, open_reader: OpenReader, status: int, body: bytes, problem: str
) -> None:
    server.serve(gettable("LowtideQueueOld"))
    reader = open_reader(server.url)
    reader.look()
    server.status, server.body = status, body
    reader.look()
    seen = reader.seen
    assert problem in (seen.problem or "")
    assert [alert.name for alert in seen.alerts] == ["LowtideQueueOld"]
    assert (seen.answered_at, seen.failing_since) == (NOW, NOW)
    assert reader.reachability is not None
    assert not reader.reachability.reachable


def test_hanging_server_times_out(
    server: StubServer, open_reader: OpenReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "TIMEOUT", 0.1)
    server.unblocked.clear()
    reader = open_reader(server.url)
    began = time.monotonic()
    reader.look()
    assert time.monotonic() - began < 5
    assert reader.seen.problem == "no response within 2 s"


def test_unreachable_server_is_reported(open_reader: OpenReader) -> None:
    reader = open_reader(f"http://127.0.0.1:{free_port()}")
    reader.look()
    assert reader.seen.problem == "no connection"
    assert reader.seen.answered_at is None


@pytest.mark.skipif(
    BINARY is None, reason="no Alertmanager: apt-get install prometheus-alertmanager"
)
def test_alerts_are_read_from_real_alertmanager(tmp_path: Path, open_reader: OpenReader) -> None:
    config = tmp_path / "alertmanager.yml"
    config.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    port = free_port()
    process = subprocess.Popen(
        [
            str(BINARY),
            f"--config.file={config}",
            f"--storage.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        posted = [
            {"labels": {"alertname": name, "severity": "critical"}, "annotations": {"summary": "S"}}
            for name in ("LowtideTickStalled", "Another")
        ]
        reader = open_reader(url)
        deadline = time.monotonic() + 20
        while not reader.seen.alerts:
            assert time.monotonic() < deadline, reader.seen.problem
            try:
                httpx.post(f"{url}/api/v2/alerts", json=posted, trust_env=False)
            except httpx.TransportError:
                time.sleep(0.05)
            reader.look()
    finally:
        process.terminate()
        process.wait(10)
    (alert,) = reader.seen.alerts
    assert (alert.name, alert.severity, alert.summary) == ("LowtideTickStalled", "critical", "S")
    assert reader.seen.problem is None

"""Alerts, from a server that answers as Alertmanager does and from Alertmanager itself."""

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
from portal.components.alerts import MOST_SHOWN, Alertmanager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Reads = Callable[[str], Alertmanager]
    from pathlib import Path

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BINARY = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")


def gettable(name: str, severity: str = "warning", summary: str = "Look.", minutes: int = 3) -> Any:
    """Return an alert as `GET /api/v2/alerts` has it."""
    return {
        "annotations": {"summary": summary},
        "endsAt": "2026-01-02T04:00:00.000Z",
        "fingerprint": "8a1f",
        "receivers": [{"name": "default"}],
        "startsAt": (NOW - timedelta(minutes=minutes)).isoformat().replace("+00:00", ".123Z"),
        "status": {"inhibitedBy": [], "silencedBy": [], "state": "active"},
        "updatedAt": "2026-01-02T03:04:05.000Z",
        "generatorURL": "javascript:alert(1)",
        "labels": {"alertname": name, "severity": severity},
    }


class Server:
    """Answers what it is told to, and notes what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b"[]"
        self.asked: list[str] = []
        self.hangs = threading.Event()
        self.hangs.set()
        self.url = ""

    def says(self, *alerts: Any) -> None:
        self.body = json.dumps(alerts).encode()


@contextmanager
def serving() -> Iterator[Server]:
    """Serve on a free port."""
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.asked.append(self.path)
            told.hangs.wait(10)
            self.send_response(told.status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}/prefix"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        told.hangs.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server."""
    with serving() as told:
        yield told


@pytest.fixture
def reads() -> Iterator[Reads]:
    """Read from an address; closed with the test."""
    opened: list[Alertmanager] = []

    def read(url: str) -> Alertmanager:
        opened.append(Alertmanager(url, clock=lambda: NOW))
        return opened[-1]

    yield read
    for reader in opened:
        reader.close()


def test_alerts_that_fire_are_read_the_gravest_and_oldest_first(
    server: Server, reads: Reads
) -> None:
    server.says(
        gettable("LowtideQueueOld"),
        gettable("LowtideTickStalled", "critical", "<b>No tick</b>"),
        gettable("LowtideLong", minutes=90),
        gettable("LowtideOdd", "sev-9"),
    )
    reader = reads(server.url)
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
    asked = urlsplit(server.asked[0])
    assert asked.path == "/prefix/api/v2/alerts"
    assert parse_qs(asked.query) == {
        "active": ["true"], "silenced": ["false"], "inhibited": ["false"],
        "unprocessed": ["false"], "filter": ['alertname=~"Lowtide.*"'],
    }  # fmt: skip


def test_no_more_are_kept_than_a_page_shows(server: Server, reads: Reads) -> None:
    server.says(*(gettable(f"Lowtide{place}", summary="x" * 900) for place in range(70)))
    reader = reads(server.url)
    reader.look()
    assert (len(reader.seen.alerts), reader.seen.more) == (MOST_SHOWN, 50)
    assert {len(alert.summary) for alert in reader.seen.alerts} == {300}


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        pytest.param(503, b"", "responded with HTTP 503", id="fails"),
        pytest.param(302, b"", "responded with HTTP 302", id="wants a sign-in"),
        pytest.param(200, b"<html>", "not a valid Alertmanager response", id="something else"),
        pytest.param(200, b'{"a": 1}', "not a valid Alertmanager response", id="another shape"),
        pytest.param(
            200,
            b'[{"labels": {}, "annotations": {}, "startsAt": "2026-01-02T03:04:05"}]',
            "not a valid Alertmanager response",
            id="a time without a zone",
        ),
        pytest.param(200, b"[" + b" " * 2_100_000, "response too large", id="too long"),
    ],
)
def test_what_is_no_answer_keeps_the_last_alerts(
    server: Server, reads: Reads, status: int, body: bytes, problem: str
) -> None:
    server.says(gettable("LowtideQueueOld"))
    reader = reads(server.url)
    reader.look()
    server.status, server.body = status, body
    reader.look()
    seen = reader.seen
    assert problem in (seen.problem or "")
    assert [alert.name for alert in seen.alerts] == ["LowtideQueueOld"]
    assert (seen.answered_at, seen.failing_since) == (NOW, NOW)
    assert reader.reachability is not None
    assert not reader.reachability.reachable


def test_one_that_hangs_is_given_up(
    server: Server, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "TIMEOUT", 0.1)
    server.hangs.clear()
    reader = reads(server.url)
    began = time.monotonic()
    reader.look()
    assert time.monotonic() - began < 5
    assert reader.seen.problem == "no response within 2 s"


def test_nobody_there(reads: Reads) -> None:
    reader = reads(f"http://127.0.0.1:{free_port()}")
    reader.look()
    assert reader.seen.problem == "no connection"
    assert reader.seen.answered_at is None


@pytest.mark.skipif(
    BINARY is None, reason="no Alertmanager: apt-get install prometheus-alertmanager"
)
def test_alertmanager_itself_answers_like_that(tmp_path: Path, reads: Reads) -> None:
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
        fires = [
            {"labels": {"alertname": name, "severity": "critical"}, "annotations": {"summary": "S"}}
            for name in ("LowtideTickStalled", "Another")
        ]
        reader = reads(url)
        deadline = time.monotonic() + 20
        while not reader.seen.alerts:
            assert time.monotonic() < deadline, reader.seen.problem
            try:
                httpx.post(f"{url}/api/v2/alerts", json=fires, trust_env=False)
            except httpx.TransportError:
                time.sleep(0.05)
            reader.look()
    finally:
        process.terminate()
        process.wait(10)
    (alert,) = reader.seen.alerts
    assert (alert.name, alert.severity, alert.summary) == ("LowtideTickStalled", "critical", "S")
    assert reader.seen.problem is None

"""Health and metrics on a separate port."""

from __future__ import annotations

import gc
import socket
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from lowtide.core.errors import Unavailable
from lowtide.local.ports import HOST, free_port
from lowtide.telemetry import health

if TYPE_CHECKING:
    from collections.abc import Iterator


class Readiness:
    """A readiness check that can fail or hang."""

    fails = False

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.released = threading.Event()
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.hangs.is_set():
            self.released.wait(60)
        if self.fails:
            raise Unavailable("The database does not answer.")


@pytest.fixture(scope="module")
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture(scope="module")
def address(readiness: Readiness) -> str:
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOST", HOST)
        health.serve(port, is_ready=readiness)
    return f"http://{HOST}:{port}"


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    """One client for all probes: on a busy machine, creating one takes longer than a response."""
    with httpx.Client(base_url=address, trust_env=False, timeout=10) as http_client:
        yield http_client


@pytest.mark.parametrize(
    ("fails", "path", "status", "text"),
    [
        (False, "/health/live", 200, "ok"),
        (False, "/health/ready", 200, "ok"),
        (True, "/health/live", 200, "ok"),
        (True, "/health/ready", 503, "The database does not answer."),
        (True, "/metrics", 200, "lowtide_build_info{"),
        (False, "/", 404, "not found"),
    ],
)
def test_health_paths_respond(
    readiness: Readiness, client: httpx.Client, *, fails: bool, path: str, status: int, text: str
) -> None:
    readiness.fails = fails
    response = client.get(path)
    assert response.status_code == status
    assert text in response.text


def _probe(client: httpx.Client, path: str) -> tuple[int, bool]:
    """Return the status, and True if it came within a second; retries for busy machines."""
    for _ in range(5):
        began = time.monotonic()
        status = client.get(path).status_code
        if time.monotonic() - began < 1:
            return status, True
    return status, False


def test_hanging_check_does_not_delay_responses(readiness: Readiness, client: httpx.Client) -> None:
    readiness.fails = False
    readiness.hangs.set()
    readiness.calls = 0
    try:
        for _ in range(3):
            assert _probe(client, "/health/ready") == (503, True)
            assert _probe(client, "/health/live") == (200, True)
        assert readiness.calls == 1
    finally:
        readiness.hangs.clear()
        readiness.released.set()
    deadline = time.monotonic() + 10
    while _probe(client, "/health/ready") != (200, True):
        assert time.monotonic() < deadline


def test_late_failure_of_check_is_retrieved(
    readiness: Readiness, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    readiness.fails = True
    readiness.released.clear()
    readiness.hangs.set()
    try:
        assert _probe(client, "/health/ready") == (503, True)
    finally:
        readiness.hangs.clear()
        readiness.released.set()
    deadline = time.monotonic() + 10
    reason = "The database does not answer."
    while client.get("/health/ready").text != reason:
        assert time.monotonic() < deadline
    readiness.fails = False
    # Once a check succeeds, the late one has ended and is unreferenced.
    while _probe(client, "/health/ready") != (200, True):
        assert time.monotonic() < deadline
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000])
def test_slow_clients_do_not_delay_responses(
    client: httpx.Client, address: str, sent: bytes
) -> None:
    host, _, port = address.removeprefix("http://").partition(":")
    connections = [socket.create_connection((host, int(port))) for _ in range(200)]
    try:
        for connection in connections:
            connection.setblocking(False)
            try:
                connection.send(sent)
            except OSError:
                continue
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert _probe(client, path) == (200, True)
    finally:
        for connection in connections:
            connection.close()


def test_other_methods_are_rejected(client: httpx.Client) -> None:
    assert client.post("/health/live").status_code == 405
    assert client.head("/health/live").status_code == 200

"""Health and metrics on a port of their own."""

from __future__ import annotations

import gc
import socket
import threading
import time

import httpx
import pytest

from lowtide import health
from lowtide.domain.errors import Unavailable
from lowtide.local.ports import HOST, free_port


class Readiness:
    """Ready, until it is told otherwise."""

    away = False

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.may_go_on = threading.Event()
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.hangs.is_set():
            self.may_go_on.wait(60)
        if self.away:
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


@pytest.mark.parametrize(
    ("away", "path", "status", "text"),
    [
        (False, "/health/live", 200, "ok"),
        (False, "/health/ready", 200, "ok"),
        (True, "/health/live", 200, "ok"),
        (True, "/health/ready", 503, "The database does not answer."),
        (True, "/metrics", 200, "lowtide_build_info{"),
        (False, "/", 404, "not found"),
    ],
)
def test_answers(
    readiness: Readiness, address: str, *, away: bool, path: str, status: int, text: str
) -> None:
    readiness.away = away
    answer = httpx.get(address + path, trust_env=False)
    assert answer.status_code == status
    assert text in answer.text


def _probe(address: str, path: str) -> tuple[int, bool]:
    began = time.monotonic()
    status = httpx.get(address + path, trust_env=False, timeout=10).status_code
    return status, time.monotonic() - began < 1


def test_a_check_that_hangs_holds_up_no_answer(readiness: Readiness, address: str) -> None:
    readiness.away = False
    readiness.hangs.set()
    readiness.calls = 0
    try:
        for _ in range(3):
            assert _probe(address, "/health/ready") == (503, True)
            assert _probe(address, "/health/live") == (200, True)
        assert readiness.calls == 1
    finally:
        readiness.hangs.clear()
        readiness.may_go_on.set()
    deadline = time.monotonic() + 10
    while _probe(address, "/health/ready") != (200, True):
        assert time.monotonic() < deadline


def test_a_check_that_fails_too_late_is_not_logged_as_unretrieved(
    readiness: Readiness, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    readiness.away = True
    readiness.may_go_on.clear()
    readiness.hangs.set()
    try:
        assert _probe(address, "/health/ready") == (503, True)
    finally:
        readiness.hangs.clear()
        readiness.may_go_on.set()
    deadline = time.monotonic() + 10
    reason = "The database does not answer."
    while httpx.get(f"{address}/health/ready", trust_env=False).text != reason:
        assert time.monotonic() < deadline
    readiness.away = False
    # Once a check succeeds the late one is over, and nothing refers to it any more.
    while _probe(address, "/health/ready") != (200, True):
        assert time.monotonic() < deadline
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000])
def test_clients_that_are_slow_hold_up_no_answer(address: str, sent: bytes) -> None:
    host, _, port = address.removeprefix("http://").partition(":")
    clients = [socket.create_connection((host, int(port))) for _ in range(200)]
    try:
        for client in clients:
            client.setblocking(False)
            try:
                client.send(sent)
            except OSError:
                continue
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert _probe(address, path) == (200, True)
    finally:
        for client in clients:
            client.close()


def test_other_methods_are_refused(address: str) -> None:
    assert httpx.post(f"{address}/health/live", trust_env=False).status_code == 405
    assert httpx.head(f"{address}/health/live", trust_env=False).status_code == 200

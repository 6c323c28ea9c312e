from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from lowtide.local import files
from lowtide.local.manifests import HttpRoute
from lowtide.local.ports import free_port
from lowtide.local.router import Routes
from lowtide.local.workloads import load

from .conftest import ROOT, eventually
from .upstream import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVICES = ("upload", "create-batch", "cancel-batch", "read")


@pytest.mark.parametrize(
    ("method", "path", "backend"),
    [
        ("POST", "/v1/files", "upload"),
        ("DELETE", "/v1/files/file-1", "upload"),
        ("POST", "/v1/uploads", "upload"),
        ("POST", "/v1/uploads/upload_1/parts", "upload"),
        ("POST", "/v1/uploads/upload_1/cancel/", "upload"),
        ("GET", "/v1/uploads/upload_1", "read"),
        ("POST", "/v1/batches", "create-batch"),
        ("POST", "/v1/batches/batch_1/cancel", "cancel-batch"),
        ("POST", "/v1/files/", "upload"),
        ("DELETE", "/v1/files/file-1/", "upload"),
        ("POST", "/v1/batches/", "create-batch"),
        ("POST", "/v1/batches/batch_1/cancel/", "cancel-batch"),
        ("POST", "/v1/dead_letters/requeue/", "create-batch"),
        ("POST", "/v1/reruns", "create-batch"),
        ("GET", "/v1/reruns", "read"),
        ("GET", "/v1/batches", "read"),
        ("GET", "/v1/files/file-1/content", "read"),
        ("HEAD", "/v1/files/file-1/content", "read"),
        ("GET", "/health/ready", "read"),
        ("GET", "/openapi.json", "read"),
        ("PUT", "/v1/files", "read"),
        ("POST", "/v1/filesystem", "read"),
        ("POST", "/openapi.json", "read"),
        ("GET", "/openapi.json/more", None),
        ("GET", "/", None),
        ("GET", "/v10", None),
    ],
)
def test_manifest_routes_request_to_service(method: str, path: str, backend: str | None) -> None:
    rules = [rule for route in load(ROOT).all(HttpRoute) for rule in route.spec.rules]
    assert Routes(rules).find(method, path) == backend


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("router")


@pytest.fixture(scope="module")
def process(data_dir: Path) -> Iterator[tuple[str, int]]:
    """The base URL and pid of a router process."""
    port = free_port()
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "lowtide.local.router", "--root", str(ROOT)),
            *("--data-dir", str(data_dir), "--port", str(port)),
        ]
    ) as running:
        eventually(lambda: _accepts(port))
        yield f"http://127.0.0.1:{port}", running.pid
        running.terminate()
        assert running.wait(10) == 0


@pytest.fixture
def router(process: tuple[str, int], data_dir: Path) -> Iterator[str]:
    with serving() as address:
        files.write_endpoints(data_dir, {name: [address] for name in SERVICES})
        yield process[0]


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_requests_are_forwarded_unchanged(router: str) -> None:
    path = "/v1/batches/a%2Fb%20c?limit=2&after=%C3%A4"
    received = httpx.get(router + path, headers=[(b"X-Thing", "Ä".encode())]).json()
    headers = {name.lower(): value for name, value in received["headers"]}
    assert received["path"] == path
    assert headers["x-thing"] == "Ä".encode().decode("latin-1")
    assert headers["host"] == router.removeprefix("http://")
    assert headers["user-agent"].startswith("python-httpx")
    assert headers["accept-encoding"] == "gzip, deflate"


def test_router_adds_only_x_forwarded_for_and_connection(router: str) -> None:
    connection = http.client.HTTPConnection(router.removeprefix("http://"))
    connection.putrequest("GET", "/v1/files", skip_accept_encoding=True)
    connection.putheader("Connection", "X-Private, close")
    connection.putheader("X-Private", "of this hop")
    connection.endheaders()
    received = json.loads(connection.getresponse().read())
    connection.close()
    names = {name.lower() for name, _ in received["headers"]}
    assert names == {"host", "x-forwarded-for", "connection"}


def test_responses_are_forwarded_unchanged(router: str) -> None:
    response = httpx.get(router + "/v1/redirect")
    assert (response.status_code, response.headers["location"]) == (307, "/elsewhere")
    with httpx.stream("GET", router + "/v1/zipped") as zipped:
        assert zipped.headers["content-encoding"] == "gzip"
        assert gzip.decompress(b"".join(zipped.iter_raw())) == b"plain"
    empty = httpx.get(router + "/v1/empty")
    assert (empty.status_code, empty.content) == (204, b"")
    head = httpx.head(router + "/v1/files")
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "content-length"])
def test_large_bodies_stream_both_ways_in_constant_memory(
    router: str, process: tuple[str, int], chunked: bool
) -> None:
    block, blocks = bytes(range(256)) * 4096, 100
    expected = hashlib.sha256(block * blocks).hexdigest()
    before = psutil.Process(process[1]).memory_info().rss
    length = {} if chunked else {"Content-Length": str(len(block) * blocks)}
    received = httpx.post(
        router + "/v1/files", content=iter([block] * blocks), headers=length, timeout=60
    ).json()
    assert (received["bytes"], received["sha256"]) == (len(block) * blocks, expected)
    with httpx.stream("GET", router + "/v1/stream") as response:
        assert sum(len(chunk) for chunk in response.iter_raw()) == 200 * 65_536
    grown = psutil.Process(process[1]).memory_info().rss - before
    assert grown < 30_000_000


def test_gzipped_request_body_is_forwarded_unchanged(router: str) -> None:
    body = gzip.compress(b"x" * 10_000)
    received = httpx.post(
        router + "/v1/files", content=body, headers={"Content-Encoding": "gzip"}
    ).json()
    assert received["sha256"] == hashlib.sha256(body).hexdigest()


def test_refusal_is_forwarded_before_body_is_sent(process: tuple[str, int], data_dir: Path) -> None:
    refusal = b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    host, _, port = process[0].removeprefix("http://").partition(":")
    with socket.create_server(("127.0.0.1", 0)) as backend:
        backend.settimeout(20)
        address = f"http://127.0.0.1:{backend.getsockname()[1]}"
        files.write_endpoints(data_dir, {"upload": [address]})
        with socket.create_connection((host, int(port)), 20) as client:
            client.sendall(b"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
            connection, _ = backend.accept()
            with connection:
                assert b"Content-Length: 1000" in _read_until(connection, b"\r\n\r\n")
                connection.sendall(refusal)
                assert _read_until(client, b"{}").startswith(b"HTTP/1.1 401 ")


def test_expect_continue_is_answered_before_the_body(router: str) -> None:
    host, _, port = router.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"body")
        assert b'"bytes": 4' in _read_until(connection, b"}")


def _read_until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        chunk = connection.recv(65_536)
        assert chunk
        received += chunk
    return received


def test_error_has_openai_shape(router: str) -> None:
    response = httpx.get(router + "/nowhere")
    assert response.status_code == 404
    assert response.headers["x-request-id"].startswith("req_")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        None,
        "unknown_url",
    )


def test_request_waits_for_backend_that_starts_late(
    process: tuple[str, int], data_dir: Path
) -> None:
    port = free_port()
    files.write_endpoints(data_dir, {"upload": [f"http://127.0.0.1:{port}"]})
    answers: list[httpx.Response] = []
    caller = threading.Thread(
        target=lambda: answers.append(
            httpx.post(process[0] + "/v1/files", content=iter([b"late", b" body"]), timeout=10)
        )
    )
    caller.start()
    time.sleep(0.3)
    with serving(port):
        caller.join()
    assert answers[0].json()["bytes"] == 9


def test_no_backend_is_503_with_retry_after(process: tuple[str, int], data_dir: Path) -> None:
    files.write_endpoints(data_dir, {"upload": ["http://127.0.0.1:9"]})
    response = httpx.post(process[0] + "/v1/files", content=b"body", timeout=10)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "unavailable"
    assert response.json()["error"]["type"] == "server_error"


def test_truncated_response_is_an_error(router: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(router + "/v1/broken")
    assert httpx.get(router + "/v1/files").status_code == 200


def test_replicas_are_picked_in_turn(tmp_path: Path) -> None:
    view = files.Endpoints(tmp_path)
    assert view.pick("read") is None
    files.write_endpoints(tmp_path, {"read": ["a", "b"]})
    assert [view.pick("read") for _ in range(4)] == ["a", "b", "a", "b"]
    files.write_endpoints(tmp_path, {"read": ["c"]})
    assert view.pick("read") == "c"

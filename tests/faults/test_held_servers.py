"""Slow clients do not block a server, and get an error when they are cut off."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai import AuthenticationError, OpenAI

from tests.conftest import API_KEY, shared_database
from tests.e2e.waiting import until
from tests.faults.servers import AUTHORIZATION, serving
from tests.http.forms import CONTENT_TYPE, form, line, part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Database
    from tests.faults.servers import Client, Server

__all__ = ["shared_database"]

CLIENTS = 16
TIMEOUT = 3.0
PROMPT_SECONDS = 2.0
IMMEDIATE: Any = pytest.approx(0, abs=1)
HOST = "Host: x\r\n"
UPLOAD = f"POST /v1/files HTTP/1.1\r\n{HOST}Content-Type: {CONTENT_TYPE}\r\n"
CREATE = f"POST /v1/batches HTTP/1.1\r\n{HOST}Content-Type: application/json\r\n"
EVENT = (
    f"POST / HTTP/1.1\r\n{HOST}ce-specversion: 1.0\r\nce-id: 1\r\nce-source: x\r\n"
    "ce-type: dev.lowtide.batch.created\r\nContent-Type: application/json\r\n"
)
LENGTH = "Content-Length: 1000000\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def settings(shared_database: Database) -> dict[str, str]:
    return {
        "LOWTIDE_DATABASE_URL": shared_database.url("api"),
        "LOWTIDE_CLIENT_TIMEOUT": str(TIMEOUT),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stored") / "objects"


@pytest.fixture(scope="module")
def upload(settings: dict[str, str], folder: Path) -> Iterator[Server]:
    with serving("upload", folder, settings) as server:
        yield server


@pytest.fixture(scope="module")
def create_batch(settings: dict[str, str], folder: Path) -> Iterator[Server]:
    with serving("create_batch", folder, settings) as server:
        yield server


@pytest.fixture(scope="module")
def read(settings: dict[str, str], folder: Path) -> Iterator[Server]:
    with serving("read", folder, settings) as server:
        yield server


@pytest.fixture(scope="module")
def split(settings: dict[str, str], folder: Path) -> Iterator[Server]:
    with serving("split", folder, settings, kind="cloudevent") as server:
        yield server


@contextmanager
def dripping(server: Server, head: str, drip: bytes = b"x") -> Iterator[list[Client]]:
    """Run many clients that send a byte per second after `head` and reconnect when cut off."""
    stop = threading.Event()
    clients = [server.connect(head) for _ in range(CLIENTS)]

    def drip_forever() -> None:
        while not stop.wait(1):
            for number, client in enumerate(clients):
                if not client.send(drip):
                    client.close()
                    clients[number] = server.connect(head)

    thread = threading.Thread(target=drip_forever)
    thread.start()
    try:
        yield clients
    finally:
        stop.set()
        thread.join()
        for client in clients:
            client.close()


def upload_file(server: Server, content: bytes = line()) -> httpx.Response:
    """Upload a file like a well-behaved client."""
    return httpx.post(
        f"{server.url}/v1/files",
        content=form(part("purpose", b"batch"), part("file", content, "a.jsonl")),
        headers={"Authorization": f"Bearer {API_KEY}", "Content-Type": CONTENT_TYPE},
        timeout=60,
        trust_env=False,
    )


def fastest(call: Callable[[], httpx.Response]) -> float:
    """Return the seconds of the fastest of three successful calls: load may delay one."""
    durations = []
    for _ in range(3):
        began = time.monotonic()
        assert call().status_code == 200
        durations.append(time.monotonic() - began)
    return min(durations)


def assert_error(answer: bytes, status: int, code: str) -> None:
    """Assert that an answer is an error in OpenAI's shape and closes the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head.lower()
    error = httpx.Response(status, content=body).json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


@pytest.mark.parametrize(
    ("head", "drip"),
    [
        pytest.param(UPLOAD + LENGTH, b"x", id="body without key"),
        pytest.param(UPLOAD + CHUNKED, b"1\r\nx\r\n", id="chunks without key"),
        pytest.param(UPLOAD, b"x", id="unfinished head"),
        pytest.param("", b"", id="no bytes"),
        pytest.param(UPLOAD + "Expect: 100-continue\r\n" + LENGTH, b"x", id="Expect: 100-continue"),
        pytest.param(f"PUT /robots.txt HTTP/1.1\r\n{HOST}{LENGTH}", b"x", id="unknown path"),
        pytest.param(f"PATCH /v1/files HTTP/1.1\r\n{HOST}{LENGTH}", b"x", id="unsupported method"),
    ],
)
def test_slow_clients_without_key_do_not_block_server(
    upload: Server, head: str, drip: bytes
) -> None:
    with dripping(upload, head, drip):
        assert fastest(lambda: upload_file(upload)) < PROMPT_SECONDS
        for path in ("/health/live", "/health/ready"):
            assert upload.health(path) == (IMMEDIATE, {200})


def test_slow_body_with_key_times_out_with_408(
    upload: Server,
) -> None:
    with dripping(upload, UPLOAD + AUTHORIZATION + LENGTH) as clients:
        until(lambda: upload_file(upload).status_code == 200, "a thread is free", within=20)
        assert_error(clients[0].read(), 408, "request_timeout")
        assert upload.health() == (IMMEDIATE, {200})


def test_event_bodies_are_limited_in_time_and_size(split: Server) -> None:
    with dripping(split, EVENT + "Content-Length: 1000\r\n\r\n") as clients:
        began = time.monotonic()
        answer = clients[0].read()
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert time.monotonic() - began < 20
    too_long = split.connect(EVENT + LENGTH)
    assert too_long.read().startswith(b"HTTP/1.1 413 ")
    good = split.connect(EVENT + "Content-Length: 2\r\nConnection: close\r\n\r\n", b"{}")
    assert good.read().startswith(b"HTTP/1.1 204 ")


@pytest.mark.parametrize("framing", [LENGTH, CHUNKED], ids=["length", "chunks"])
def test_refused_body_gets_no_100_continue(upload: Server, framing: str) -> None:
    client = upload.connect(UPLOAD + "Expect: 100-continue\r\n" + framing)
    assert_error(client.read(), 401, "invalid_api_key")


def test_authenticated_body_gets_100_continue(create_batch: Server) -> None:
    body = b'{"input_file_id": "file-unknown"}'
    head = f"{CREATE}{AUTHORIZATION}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    client = create_batch.connect(head)
    assert client.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    assert client.read_head().startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        pytest.param(CREATE, 401, "invalid_api_key", id="no key"),
        pytest.param(CREATE + "Authorization: Bearer no\r\n", 401, "invalid_api_key", id="wrong key"),
        pytest.param(
            CREATE.replace("/v1/batches", "/v1/nothing"), 404, "unknown_url", id="unknown path"
        ),
        pytest.param(CREATE.replace("POST", "PUT"), 405, "method_not_allowed", id="unsupported method"),
        pytest.param(
            (CREATE + AUTHORIZATION).replace("application/json", "text/plain"),
            415, "unsupported_media_type", id="not JSON",
        ),
    ],
)  # fmt: skip
def test_request_is_refused_before_body_is_read(
    create_batch: Server, head: str, status: int, code: str
) -> None:
    client = create_batch.connect(head + LENGTH)
    assert_error(client.read(), status, code)


@pytest.mark.parametrize("function", ["create_batch", "upload"])
def test_too_long_body_is_refused_by_content_length(
    function: str, request: pytest.FixtureRequest
) -> None:
    head = {"create_batch": CREATE, "upload": UPLOAD}[function]
    server: Server = request.getfixturevalue(function)
    client = server.connect(head + AUTHORIZATION + "Content-Length: 1000000000\r\n\r\n")
    assert_error(client.read(), 413, "payload_too_large")


def test_slow_head_times_out_with_408(upload: Server) -> None:
    client = upload.connect("POST /v1/files HT")
    began = time.monotonic()
    assert client.read().startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < TIMEOUT + 5


def test_oversized_request_line_and_head_are_refused(upload: Server) -> None:
    assert b" 414 " in upload.connect(f"GET /{'x' * 9000} HTTP/1.1\r\n\r\n").read()[:20]
    client = upload.connect(UPLOAD, b"a: b\r\n" * 20_000)
    assert b" 431 " in client.read()[:20]


def test_slow_but_steady_upload_succeeds(upload: Server) -> None:
    body = form(part("purpose", b"batch"), part("file", line() * 3000, "a.jsonl"))
    client = upload.connect(f"{UPLOAD}{AUTHORIZATION}Content-Length: {len(body)}\r\n\r\n")
    began = time.monotonic()
    pieces = 12
    size = len(body) // pieces + 1
    for position in range(0, len(body), size):
        # The pause simulates a slow network.
        threading.Event().wait(TIMEOUT / 8)
        assert client.send(body[position : position + size])
    assert client.read_head().startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - began > TIMEOUT


@pytest.mark.parametrize("size", [10_000, 10_000_000])
def test_client_that_sends_refused_body_first_gets_401(upload: Server, size: int) -> None:
    content = line() * (size // len(line()))
    with (
        OpenAI(base_url=f"{upload.url}/v1", api_key="lt_wrong", max_retries=0) as client,
        pytest.raises(AuthenticationError),
    ):
        client.files.create(file=("a.jsonl", content), purpose="batch")


def test_body_shorter_than_content_length_gets_400(upload: Server) -> None:
    client = upload.connect(
        f"{UPLOAD}{AUTHORIZATION}{LENGTH}", form(part("purpose", b"batch"))[:-9]
    )
    client.socket.shutdown(1)
    assert client.read().startswith(b"HTTP/1.1 400 ")


def test_bytes_after_body_are_next_request(create_batch: Server) -> None:
    one = f"{CREATE}{AUTHORIZATION}Content-Length: 2\r\n\r\n{{}}"
    answer = create_batch.connect(one + one + "garbage\r\n\r\n").read()
    assert answer.count(b"input_file_id") == 4
    assert answer.count(b"HTTP/1.1 400 ") == 3


def test_client_that_does_not_read_its_answer_is_cut_off(upload: Server, read: Server) -> None:
    content = line(x="y" * 1000) * 40_000
    file = upload_file(upload, content).json()["id"]
    headers = {"Authorization": f"Bearer {API_KEY}"}
    head = f"GET /v1/files/{file}/content HTTP/1.1\r\n{HOST}{AUTHORIZATION}\r\n"
    readers = [read.connect(head, receive=4096) for _ in range(CLIENTS)]
    began = time.monotonic()
    response = httpx.get(f"{read.url}/v1/files", headers=headers, timeout=60, trust_env=False)
    assert response.status_code == 200
    assert time.monotonic() - began < 4 * TIMEOUT
    assert len(readers[0].read()) < len(content)
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("kind", ["bodies", "downloads"])
def test_slow_clients_with_key_do_not_block_others(
    settings: dict[str, str], folder: Path, upload: Server, kind: str
) -> None:
    """These clients stay within the limits of an idle server and could continue for minutes."""
    patient = settings | {"LOWTIDE_CLIENT_TIMEOUT": "60", "LOWTIDE_CLIENT_RATE": "1"}
    content = line(x="y" * 1000) * 40_000
    file = upload_file(upload, content).json()["id"]
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with serving("upload" if kind == "bodies" else "read", folder, patient) as server:
        head = (
            UPLOAD + AUTHORIZATION + LENGTH
            if kind == "bodies"
            else f"GET /v1/files/{file}/content HTTP/1.1\r\n{HOST}{AUTHORIZATION}\r\n"
        )
        slow = [server.connect(head, b"x", receive=4096) for _ in range(CLIENTS)]
        began = time.monotonic()
        if kind == "bodies":
            assert upload_file(server).status_code == 200
        else:
            response = httpx.get(
                f"{server.url}/v1/files", headers=headers, timeout=60, trust_env=False
            )
            assert response.status_code == 200
        assert time.monotonic() - began < 25
        for client in slow:
            client.close()


def test_server_answers_despite_600_unfinished_requests(read: Server) -> None:
    clients = [read.connect("GET /he") for _ in range(600)]
    live = f"{read.url}/health/live"
    assert fastest(lambda: httpx.get(live, timeout=10, trust_env=False)) < PROMPT_SECONDS
    for client in clients:
        client.close()


def test_health_answers_while_database_hangs(settings: dict[str, str], folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        url = {"LOWTIDE_DATABASE_URL": f"postgresql://lowtide_api:x@127.0.0.1:{port}/lowtide"}
        with serving("read", folder, settings | url) as server:
            assert server.health("/health/live") == (IMMEDIATE, {200})
            assert server.health("/health/ready") == (IMMEDIATE, {503})
            # On the public port, probes share the threads of other requests.
            with ThreadPoolExecutor(CLIENTS) as pool:
                began = time.monotonic()
                ready = f"{server.url}/health/ready"
                answers = pool.map(lambda _: httpx.get(ready, timeout=30), range(CLIENTS))
                assert {answer.status_code for answer in answers} == {503}
                assert time.monotonic() - began < 10


def test_slow_clients_leave_no_traceback_in_log(upload: Server) -> None:
    log = upload.stderr.read_text()
    assert "Traceback" not in log

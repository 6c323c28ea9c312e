"""Clients that send or take almost nothing hold no server, and hear why they are cut off."""

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
PROMPT = 2.0
AT_ONCE: Any = pytest.approx(0, abs=1)
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
    """Have many clients send a byte a second each behind `head`, and come again when cut off."""
    stop = threading.Event()
    clients = [server.connect(head) for _ in range(CLIENTS)]

    def drip_on() -> None:
        while not stop.wait(1):
            for number, client in enumerate(clients):
                if not client.send(drip):
                    client.close()
                    clients[number] = server.connect(head)

    thread = threading.Thread(target=drip_on)
    thread.start()
    try:
        yield clients
    finally:
        stop.set()
        thread.join()
        for client in clients:
            client.close()


def uploaded(server: Server, content: bytes = line()) -> httpx.Response:
    """Upload a file as a good client does."""
    return httpx.post(
        f"{server.url}/v1/files",
        content=form(part("purpose", b"batch"), part("file", content, "a.jsonl")),
        headers={"Authorization": f"Bearer {API_KEY}", "Content-Type": CONTENT_TYPE},
        timeout=60,
        trust_env=False,
    )


def quickest(call: Callable[[], httpx.Response]) -> float:
    """Return the seconds of the quickest of three calls that succeed: load may delay one."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert call().status_code == 200
        took.append(time.monotonic() - began)
    return min(took)


def is_error(answer: bytes, status: int, code: str) -> None:
    """Assert that an answer is an error in OpenAI's shape, and the connection's last."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head.lower()
    error = httpx.Response(status, content=body).json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


@pytest.mark.parametrize(
    ("head", "drip"),
    [
        pytest.param(UPLOAD + LENGTH, b"x", id="a body, no key"),
        pytest.param(UPLOAD + CHUNKED, b"1\r\nx\r\n", id="chunks, no key"),
        pytest.param(UPLOAD, b"x", id="a head"),
        pytest.param("", b"", id="nothing"),
        pytest.param(UPLOAD + "Expect: 100-continue\r\n" + LENGTH, b"x", id="waits to be asked"),
        pytest.param(f"PUT /robots.txt HTTP/1.1\r\n{HOST}{LENGTH}", b"x", id="no such path"),
        pytest.param(f"PATCH /v1/files HTTP/1.1\r\n{HOST}{LENGTH}", b"x", id="no such method"),
    ],
)
def test_clients_without_a_key_hold_nothing(upload: Server, head: str, drip: bytes) -> None:
    with dripping(upload, head, drip):
        assert quickest(lambda: uploaded(upload)) < PROMPT
        for path in ("/health/live", "/health/ready"):
            assert upload.health(path) == (AT_ONCE, {200})


def test_bodies_of_callers_with_a_key_are_waited_for_no_longer_than_their_patience(
    upload: Server,
) -> None:
    with dripping(upload, UPLOAD + AUTHORIZATION + LENGTH) as clients:
        until(lambda: uploaded(upload).status_code == 200, "the threads are free", within=20)
        is_error(clients[0].read(), 408, "request_timeout")
        assert upload.health() == (AT_ONCE, {200})


def test_events_hold_nothing(split: Server) -> None:
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
def test_a_refused_body_is_not_asked_for(upload: Server, framing: str) -> None:
    client = upload.connect(UPLOAD + "Expect: 100-continue\r\n" + framing)
    is_error(client.read(), 401, "invalid_api_key")


def test_a_body_is_asked_for_once_its_caller_is_known(create_batch: Server) -> None:
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
        pytest.param(CREATE + "Authorization: Bearer no\r\n", 401, "invalid_api_key", id="a wrong key"),
        pytest.param(
            CREATE.replace("/v1/batches", "/v1/nothing"), 404, "unknown_url", id="no such path"
        ),
        pytest.param(CREATE.replace("POST", "PUT"), 405, "method_not_allowed", id="no such method"),
        pytest.param(
            (CREATE + AUTHORIZATION).replace("application/json", "text/plain"),
            415, "unsupported_media_type", id="not JSON",
        ),
    ],
)  # fmt: skip
def test_a_refused_body_is_not_read(
    create_batch: Server, head: str, status: int, code: str
) -> None:
    client = create_batch.connect(head + LENGTH)
    is_error(client.read(), status, code)


@pytest.mark.parametrize("function", ["create_batch", "upload"])
def test_a_body_that_is_too_long_is_refused_by_its_length(
    function: str, request: pytest.FixtureRequest
) -> None:
    head = {"create_batch": CREATE, "upload": UPLOAD}[function]
    server: Server = request.getfixturevalue(function)
    client = server.connect(head + AUTHORIZATION + "Content-Length: 1000000000\r\n\r\n")
    is_error(client.read(), 413, "payload_too_large")


def test_a_slow_head_is_answered_in_time(upload: Server) -> None:
    client = upload.connect("POST /v1/files HT")
    began = time.monotonic()
    assert client.read().startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < TIMEOUT + 5


def test_a_head_has_a_largest_size(upload: Server) -> None:
    assert b" 414 " in upload.connect(f"GET /{'x' * 9000} HTTP/1.1\r\n\r\n").read()[:20]
    client = upload.connect(UPLOAD, b"a: b\r\n" * 20_000)
    assert b" 431 " in client.read()[:20]


def test_an_upload_that_is_slow_but_steady_passes(upload: Server) -> None:
    body = form(part("purpose", b"batch"), part("file", line() * 3000, "a.jsonl"))
    client = upload.connect(f"{UPLOAD}{AUTHORIZATION}Content-Length: {len(body)}\r\n\r\n")
    began = time.monotonic()
    pieces = 12
    size = len(body) // pieces + 1
    for position in range(0, len(body), size):
        # A pause each time, as a slow line makes them.
        threading.Event().wait(TIMEOUT / 8)
        assert client.send(body[position : position + size])
    assert client.read_head().startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - began > TIMEOUT


@pytest.mark.parametrize("size", [10_000, 10_000_000])
def test_a_client_that_sends_all_of_a_refused_body_first_hears_why(
    upload: Server, size: int
) -> None:
    whole = line() * (size // len(line()))
    with (
        OpenAI(base_url=f"{upload.url}/v1", api_key="lt_wrong", max_retries=0) as client,
        pytest.raises(AuthenticationError),
    ):
        client.files.create(file=("a.jsonl", whole), purpose="batch")


def test_a_body_shorter_than_its_length_is_refused(upload: Server) -> None:
    client = upload.connect(
        f"{UPLOAD}{AUTHORIZATION}{LENGTH}", form(part("purpose", b"batch"))[:-9]
    )
    client.socket.shutdown(1)
    assert client.read().startswith(b"HTTP/1.1 400 ")


def test_what_follows_a_body_is_another_request(create_batch: Server) -> None:
    one = f"{CREATE}{AUTHORIZATION}Content-Length: 2\r\n\r\n{{}}"
    answer = create_batch.connect(one + one + "garbage\r\n\r\n").read()
    assert answer.count(b"input_file_id") == 4
    assert answer.count(b"HTTP/1.1 400 ") == 3


def test_who_does_not_take_an_answer_is_cut_off(upload: Server, read: Server) -> None:
    content = line(x="y" * 1000) * 40_000
    file = uploaded(upload, content).json()["id"]
    headers = {"Authorization": f"Bearer {API_KEY}"}
    head = f"GET /v1/files/{file}/content HTTP/1.1\r\n{HOST}{AUTHORIZATION}\r\n"
    readers = [read.connect(head, receive=4096) for _ in range(CLIENTS)]
    began = time.monotonic()
    listed = httpx.get(f"{read.url}/v1/files", headers=headers, timeout=60, trust_env=False)
    assert listed.status_code == 200
    assert time.monotonic() - began < 4 * TIMEOUT
    assert len(readers[0].read()) < len(content)
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("what", ["bodies", "downloads"])
def test_slow_clients_with_a_key_do_not_keep_others_waiting(
    settings: dict[str, str], folder: Path, upload: Server, what: str
) -> None:
    """They keep within the limits of an idle server, and could go on for minutes."""
    patient = settings | {"LOWTIDE_CLIENT_TIMEOUT": "60", "LOWTIDE_CLIENT_RATE": "1"}
    content = line(x="y" * 1000) * 40_000
    file = uploaded(upload, content).json()["id"]
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with serving("upload" if what == "bodies" else "read", folder, patient) as server:
        head = (
            UPLOAD + AUTHORIZATION + LENGTH
            if what == "bodies"
            else f"GET /v1/files/{file}/content HTTP/1.1\r\n{HOST}{AUTHORIZATION}\r\n"
        )
        slow = [server.connect(head, b"x", receive=4096) for _ in range(CLIENTS)]
        began = time.monotonic()
        if what == "bodies":
            assert uploaded(server).status_code == 200
        else:
            listed = httpx.get(
                f"{server.url}/v1/files", headers=headers, timeout=60, trust_env=False
            )
            assert listed.status_code == 200
        assert time.monotonic() - began < 25
        for client in slow:
            client.close()


def test_of_too_many_connections_the_one_that_waited_longest_goes(read: Server) -> None:
    clients = [read.connect("GET /he") for _ in range(600)]
    live = f"{read.url}/health/live"
    assert quickest(lambda: httpx.get(live, timeout=10, trust_env=False)) < PROMPT
    for client in clients:
        client.close()


def test_health_answers_while_the_database_hangs(settings: dict[str, str], folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        url = {"LOWTIDE_DATABASE_URL": f"postgresql://lowtide_api:x@127.0.0.1:{port}/lowtide"}
        with serving("read", folder, settings | url) as server:
            assert server.health("/health/live") == (AT_ONCE, {200})
            assert server.health("/health/ready") == (AT_ONCE, {503})
            # On the port that everybody reaches, they share the threads of other requests.
            with ThreadPoolExecutor(CLIENTS) as pool:
                began = time.monotonic()
                ready = f"{server.url}/health/ready"
                answers = pool.map(lambda _: httpx.get(ready, timeout=30), range(CLIENTS))
                assert {answer.status_code for answer in answers} == {503}
                assert time.monotonic() - began < 10


def test_what_slow_clients_do_is_not_an_error_of_the_server(upload: Server) -> None:
    log = upload.stderr.read_text()
    assert "Traceback" not in log

"""A function under gunicorn, and clients on raw sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from lowtide.local.ports import HOST, free_port
from tests.conftest import API_KEY, PEPPER
from tests.e2e.command import clean_environment
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(os.environ.get("FAULTS_ROOT", Path(__file__).resolve().parents[2]))
AUTHORIZATION = f"Authorization: Bearer {API_KEY}\r\n"


@dataclass(frozen=True)
class Server:
    """A running function; `stderr` is its log."""

    port: int
    health_port: int
    pid: int
    stderr: Path

    @property
    def url(self) -> str:
        """The URL of the function."""
        return f"http://{HOST}:{self.port}"

    def connect(self, head: str = "", body: bytes = b"", *, receive: int | None = None) -> Client:
        """Open a connection and send `head` and `body`; `receive` is the size of its receive buffer."""
        connection = socket.socket()
        if receive is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        connection.settimeout(30)
        connection.connect((HOST, self.port))
        client = Client(connection)
        client.send(head.encode() + body)
        return client

    def health(self, path: str = "/health/live") -> tuple[float, set[int]]:
        """Return the seconds of the fastest of three probes and the set of their statuses.

        A busy machine delays one of them, a blocked server all.
        """
        probes = [self._probe(path) for _ in range(3)]
        return min(seconds for seconds, _ in probes), {status for _, status in probes}

    def _probe(self, path: str) -> tuple[float, int]:
        began = time.monotonic()
        answer = httpx.get(f"http://{HOST}:{self.health_port}{path}", timeout=10, trust_env=False)
        return time.monotonic() - began, answer.status_code


class Client:
    """A raw connection to a server."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def send(self, data: bytes) -> bool:
        """Send data; return whether the connection is still open."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def read(self) -> bytes:
        """Return all bytes until the connection is closed."""
        data = b""
        try:
            while piece := self.socket.recv(65536):
                data += piece
        except ConnectionResetError:
            pass
        return data

    def read_head(self) -> bytes:
        """Return the bytes of a response head."""
        data = b""
        while b"\r\n\r\n" not in data:
            byte = self.socket.recv(1)
            assert byte, data
            data += byte
        return data

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def __del__(self) -> None:
        """Close the connection with its object."""
        self.socket.close()


@contextmanager
def serving(
    function: str, folder: Path, settings: Mapping[str, str], *, kind: str = "http"
) -> Iterator[Server]:
    """Run a function for the block."""
    port, health = free_port(), free_port()
    environment = {
        "LOWTIDE_API_KEY_PEPPER": PEPPER,
        "LOWTIDE_OBJECT_STORE_URL": f"file://{folder}",
        "LOWTIDE_HEALTH_PORT": str(health),
        "HOST": HOST,
        "PORT": str(port),
        "THREADS": "8",
        "FUNCTION_SOURCE": str(ROOT / "functions" / function / "main.py"),
        "FUNCTION_TARGET": function,
        "FUNCTION_SIGNATURE_TYPE": kind,
        "PYTHONPATH": os.fspath(ROOT),
        **settings,
    }
    log = folder.parent / f"{function}-{port}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "python:lowtide.serving",
             "functions_framework:create_app()"],
            env=clean_environment(environment), cwd=ROOT, stderr=stderr,
        )  # fmt: skip
    server = Server(port, health, process.pid, log)
    try:
        until(lambda: _answers(server), f"{function} answers", within=150)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def _answers(server: Server) -> bool:
    try:
        server.health()
        with socket.create_connection((HOST, server.port), 1):
            return True
    except (OSError, httpx.HTTPError):
        return False

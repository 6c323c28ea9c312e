"""A function under its real server, and clients that speak bytes."""

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
    """One function of its own; `stderr` is its log."""

    port: int
    health_port: int
    pid: int
    stderr: Path

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}"

    def connect(self, head: str = "", body: bytes = b"", *, receive: int | None = None) -> Client:
        """Open a connection and send what is given; `receive` is the size of its buffer."""
        made = socket.socket()
        if receive is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        made.settimeout(30)
        made.connect((HOST, self.port))
        client = Client(made)
        client.send(head.encode() + body)
        return client

    def health(self, path: str = "/health/live") -> tuple[float, set[int]]:
        """Return the seconds of the quickest of three probes, and their statuses.

        A busy machine delays one; a server that is held delays them all.
        """
        probes = [self._probe(path) for _ in range(3)]
        return min(seconds for seconds, _ in probes), {status for _, status in probes}

    def _probe(self, path: str) -> tuple[float, int]:
        began = time.monotonic()
        answer = httpx.get(f"http://{HOST}:{self.health_port}{path}", timeout=10, trust_env=False)
        return time.monotonic() - began, answer.status_code


class Client:
    """A connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def send(self, data: bytes) -> bool:
        """Send; return whether the server still takes it."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def read(self) -> bytes:
        """Return everything up to the end of the connection."""
        found = b""
        try:
            while data := self.socket.recv(65536):
                found += data
        except ConnectionResetError:
            pass
        return found

    def read_head(self) -> bytes:
        """Return the bytes up to the end of a head."""
        found = b""
        while b"\r\n\r\n" not in found:
            data = self.socket.recv(1)
            assert data, found
            found += data
        return found

    def close(self) -> None:
        """End it."""
        self.socket.close()

    def __del__(self) -> None:
        """Leave nothing open."""
        self.socket.close()


@contextmanager
def serving(
    function: str, folder: Path, settings: Mapping[str, str], *, kind: str = "http"
) -> Iterator[Server]:
    """Run one function for a block."""
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

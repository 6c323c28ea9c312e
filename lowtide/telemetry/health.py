"""Liveness, readiness and metrics on a separate port."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from concurrent.futures import Future
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Gauge
from prometheus_client.exposition import choose_encoder

from lowtide.core.errors import LowtideError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable


_BUILD = Gauge(
    "lowtide_build_info", "Always 1; the label has the version of this process.", ["version"]
)


def export() -> None:
    """Export the version as a metric."""
    _BUILD.labels(version("lowtide")).set(1)


SECONDS = 0.7
"""Max seconds that a probe waits, so that it gets a response within one."""


class Readiness:
    """Run a check in a thread that may hang, one at a time for any number of callers.

    Example:
        Readiness(check_database).require()
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._current: Future[None] | None = None

    def require(self) -> None:
        """Raise the error of the check, or Unavailable if it takes too long."""
        current = self.ask()
        try:
            current.result(SECONDS)
        except TimeoutError as error:
            raise too_late() from error

    def ask(self) -> Future[None]:
        """Return the future of the running check, or of a new one."""
        with self._lock:
            if self._current is None or self._current.done():
                self._current = Future()
                # A daemon: a hanging check must not block the exit of the process.
                threading.Thread(
                    target=self._run, args=(self._current,), daemon=True, name="readiness"
                ).start()
            return self._current

    def _run(self, current: Future[None]) -> None:
        try:
            self._check()
        except BaseException as error:  # noqa: BLE001 - raised again for who asked
            current.set_exception(error)
        else:
            current.set_result(None)


def too_late() -> Unavailable:
    """Return the error for a check that timed out."""
    return Unavailable("A dependency is not responding: try again.")


_TEXT = "text/plain; charset=utf-8"
_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
# Enough for all concurrent probes and scrapes; a client that takes longer is neither.
_MAX_CLIENTS = 64
_CLIENT_SECONDS = 5.0
_HEAD_BYTES = 16_384


def serve(port: int, *, is_ready: Callable[[], None], host: str | None = None) -> None:
    """Serve in a thread; `is_ready` raises LowtideError while the process is not ready.

    `host` defaults to the environment variable `HOST`, else to all addresses: a pod's probes and
    scrapes come from outside. Every response is sent within a second, even while `is_ready` hangs
    and regardless of other clients.
    """
    export()
    address = host or os.environ.get("HOST", "0.0.0.0")  # noqa: S104
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=_MAX_CLIENTS)
    server = _Server(Readiness(is_ready))
    threading.Thread(
        target=lambda: asyncio.run(server.run(listener)), daemon=True, name="health"
    ).start()


class _Server:
    """A server with one thread for all clients, which none of them can block."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def run(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._accept, sock=listener, limit=_HEAD_BYTES)
        await server.serve_forever()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= _MAX_CLIENTS:
            next(iter(self._clients)).cancel()
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients[task] = writer
        # Not at the end of the task itself: a task cancelled before its start never gets there.
        task.add_done_callback(lambda done: self._clients.pop(done).close())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_CLIENT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head.decode("latin-1")))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            writer.transport.abort()

    async def _answer(self, head: str) -> bytes:
        line, *headers = head.split("\r\n")
        method, _, target = line.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        status, type_, body = 404, _TEXT, b"not found"
        if method not in {"GET", "HEAD"}:
            status, body = 405, b"only GET"
        elif path == "/metrics":
            status = 200
            encode, type_ = choose_encoder(_header(headers, "accept"))
            body = encode(REGISTRY)
        elif path == "/health/live":
            status, body = 200, b"ok"
        elif path == "/health/ready":
            status, body = await self._ready()
        response_head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {type_}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return response_head.encode() + (b"" if method == "HEAD" else body)

    async def _ready(self) -> tuple[int, bytes]:
        current = asyncio.wrap_future(self._readiness.ask())
        # Retrieves the exception, so that asyncio does not log one raised after the response.
        current.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait_for(asyncio.shield(current), SECONDS)
        except TimeoutError:
            return 503, too_late().message.encode()
        except LowtideError as error:
            return 503, error.message.encode()
        return 200, b"ok"


def _header(lines: list[str], name: str) -> str:
    for line in lines:
        header, _, value = line.partition(":")
        if header.lower() == name:
            return value.strip()
    return ""

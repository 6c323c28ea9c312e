"""An engine under the tests' control: it answers, refuses, holds or fails a request by its prompt."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from contextlib import contextmanager
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from lowtide.engines.simulation.answers import answer, failure
from tests.conformance.lines import BROKEN, HELD, MODEL, REFUSE

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_HOLD = 300.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """List the models."""
        listed = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        self._reply(200, json.dumps(listed).encode())

    def do_POST(self) -> None:
        """Answer a request by its prompt."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for name in HELD.findall(body):
            self.server.holds[name.decode()].wait(_MAX_HOLD)
        if any(name.decode() not in self.server.mended for name in BROKEN.findall(body)):
            self._reply(500, failure("The engine is broken.", "server_error"))
            return
        if REFUSE.encode() in body:
            self._reply(400, failure("The engine refuses this.", "invalid_request_error"))
            return
        digest = blake2b(body, digest_size=32).digest()
        status, answered, _ = answer(self.path, body, digest, tokens=12, age=0.5)
        self._reply(status, answered)

    def _reply(self, status: int, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.holds: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.mended: set[str] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a worker that hangs up."""


class Engine:
    """A running engine."""

    def __init__(self, server: _Server) -> None:
        self._server = server

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def release(self, name: str | None = None) -> None:
        """Answer the requests held by this name, or all held requests."""
        for held in [name] if name is not None else list(self._server.holds):
            self._server.holds[held].set()

    def mend(self, name: str) -> None:
        """Answer the requests broken by this name from now on."""
        self._server.mended.add(name)


@contextmanager
def commanded_engine() -> Iterator[Engine]:
    """Run an engine for the length of the block."""
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        engine = Engine(server)
        try:
            yield engine
        finally:
            engine.release()
            server.shutdown()
            thread.join()

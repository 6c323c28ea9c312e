"""Small cells over HTTP: each keeps objects in memory, and can go away, hang or answer slowly."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from lowtide.cells.model import HEARTBEAT_PATH, TENANT_PATH, Report
from lowtide.core.ids import BatchId, FileId, format_batch_id, format_file_id, ids_of_cell

TOKEN = "shared by all cells"


class Stub:
    """A cell, until `stop`; its heartbeat is `report`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.new_id = ids_of_cell(number)
        self.objects: dict[str, dict[str, Any]] = {}
        self.received = 0
        self.connections: list[socket.socket] = []
        self.calls: list[str] = []
        self.status: int | None = None
        self.delay = 0.0
        self.pause = 0.0
        """Seconds before it reads a body."""
        self.loses_answers = False
        self.tenant = "acme"
        self.lookups = self.most_lookups = 0
        self.seen: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.report = Report([], cell=number)
        handler = type("Handler", (_Handler,), {"stub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def create(self, kind: str) -> dict[str, Any]:
        """Create an object of a kind of path."""
        id_ = self.new_id()
        name = format_file_id(FileId(id_)) if kind == "files" else format_batch_id(BatchId(id_))
        self.objects[name] = {"id": name, "cell": self.number}
        return self.objects[name]

    def page(self, path: str, query: dict[str, list[str]]) -> dict[str, Any]:
        """Return a page of a list, newest first."""
        prefix = "file-" if path == "/v1/files" else "batch_"
        limit = int(query.get("limit", ["20"])[0])
        after = query.get("after", [""])[0]
        names = sorted((name for name in self.objects if name.startswith(prefix)), reverse=True)
        if after:
            names = [name for name in names if name < after]
        return {
            "object": "list",
            "data": [self.objects[name] for name in names[:limit]],
            "has_more": len(names) > limit,
        }

    def stop(self) -> None:
        """Stop like a killed process: connections break, and new ones are refused."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """The API of a stub."""

    stub: Stub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.stub.connections.append(self.request)
        super().setup()

    def do_GET(self) -> None:
        self.stub.calls.append(f"GET {self.path}")
        self.stub.seen = dict(self.headers)
        url = urlsplit(self.path)
        is_lookup = url.path == TENANT_PATH
        self.stub.lookups += is_lookup
        self.stub.most_lookups = max(self.stub.most_lookups, self.stub.lookups)
        time.sleep(self.stub.delay)
        self.stub.lookups -= is_lookup
        if self.stub.status is not None:
            return self.answer(self.stub.status, {"error": {"message": "no"}})
        if url.path in {"/v1/files", "/v1/batches"}:
            return self.answer(200, self.stub.page(url.path, parse_qs(url.query)))
        if url.path == HEARTBEAT_PATH:
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self.answer(401, {"error": {"message": "no"}})
            return self.answer(200, msgspec.to_builtins(self.stub.report))
        if is_lookup:
            self.stub.calls.pop()
            return self.answer(200, {"tenant": self.stub.tenant})
        found = self.stub.objects.get([*url.path.split("/"), ""][3])
        return self.answer(200, found) if found else self.answer(404, {"error": {}})

    def do_DELETE(self) -> None:
        name = self.path.split("/")[3]
        found = self.stub.objects.pop(name, None)
        return self.answer(404 if found is None else 200, {"id": name})

    def do_POST(self) -> None:
        self.stub.calls.append(f"POST {self.path}")
        time.sleep(self.stub.pause)
        body = self.body()
        if self.stub.status is not None:
            return self.answer(self.stub.status, {"error": {"message": "no"}})
        if self.path.endswith("/cancel"):
            return self.answer(200 if self.path.split("/")[3] in self.stub.objects else 404, {})
        kind = self.path.split("/")[2]
        created = self.stub.create(kind)
        if kind == "batches" and body:
            created["input_file_id"] = json.loads(body).get("input_file_id")
        if self.stub.loses_answers:
            self.close_connection = True
            return None
        return self.answer(200, created)

    def body(self) -> bytes:
        kept = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                kept = self.take(self.rfile.read(size), kept)
                self.rfile.readline()
            self.rfile.readline()
            return kept
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(left, 1 << 20))
            left -= len(piece)
            kept = self.take(piece, kept)
        return kept

    def take(self, piece: bytes, kept: bytes) -> bytes:
        self.stub.received += len(piece)
        return kept + piece if len(kept) < 1 << 16 else kept

    def answer(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("x-cell", str(self.stub.number))
        for header in self.stub.headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""

"""A plain HTTP server that returns the request it received."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def answer(self) -> None:
        digest, size = hashlib.sha256(), 0
        for chunk in self.chunks():
            digest.update(chunk)
            size += len(chunk)
        path = self.path.partition("?")[0]
        if path == "/v1/stream":
            self.stream(200)
        elif path == "/v1/empty":
            self.send_response(204)
            self.end_headers()
        elif path == "/v1/zipped":
            self.reply(200, gzip.compress(b"plain"), {"Content-Encoding": "gzip"})
        elif path == "/v1/redirect":
            self.reply(307, b"", {"Location": "/elsewhere", "X-Twice": "1"})
        elif path == "/v1/broken":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        else:
            received = {
                "method": self.command,
                "path": self.path,
                "headers": self.headers.items(),
                "bytes": size,
                "sha256": digest.hexdigest(),
            }
            self.reply(200, json.dumps(received).encode(), {"Content-Type": "application/json"})

    do_GET = do_POST = do_DELETE = do_PUT = do_HEAD = answer  # noqa: N815

    def chunks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        remaining = int(self.headers.get("Content-Length") or 0)
        while remaining:
            chunk = self.rfile.read(min(remaining, 1 << 20))
            remaining -= len(chunk)
            yield chunk

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def stream(self, chunks: int) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(chunks):
            self.wfile.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")


@contextmanager
def serving(port: int = 0) -> Iterator[str]:
    """Serve on a port and yield the base URL."""
    with ThreadingHTTPServer(("127.0.0.1", port), Upstream) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()

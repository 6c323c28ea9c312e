"""Google's XML API for tests, in front of an S3 server whose API it resembles.

No packaged emulator of Google Cloud Storage has the XML API, which obstore uses. Requests are passed
on unsigned: signatures are not verified here.
"""

from __future__ import annotations

import http.client
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    from collections.abc import Iterator

_COPY = "x-goog-copy-source"
_GENERATION = "x-goog-if-generation-match"
_PASSED_ON = ("range", "if-match", "content-type", "content-md5")
_RETURNED = ("etag", "last-modified", "content-type", "content-range", "content-length")


def service_account() -> str:
    """Return the key of a service account, with which obstore signs without asking a server."""
    private = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return json.dumps(
        {"client_email": "test@lowtide", "private_key": private.decode(), "private_key_id": "1"}
    )


class _Front(BaseHTTPRequestHandler):
    """Passes a request on to the S3 server at `backend`."""

    protocol_version = "HTTP/1.1"
    backend: ClassVar[str]

    def handle_one_request(self) -> None:
        """Handle a request of any method."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_bearer = self.headers.get("Authorization", "").startswith("Bearer ")
        if is_bearer or "X-Goog-Signature=" in self.path:
            self._answer(*self._ask(body))
        else:
            self._answer(403, {}, b"")

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
        if _COPY in self.headers:
            headers["x-amz-copy-source"] = self.headers[_COPY]
        if self.headers.get(_GENERATION) == "0":
            headers["If-None-Match"] = "*"
        backend = http.client.HTTPConnection(self.backend, timeout=60)
        try:
            # A signature would be verified as one of S3.
            backend.request(self.command, self.path.partition("?X-Goog-")[0], body, headers)
            response = backend.getresponse()
            returned = {name: response.headers.get(name, "") for name in _RETURNED}
            known = {name: value for name, value in returned.items() if value}
            return response.status, known, response.read()
        finally:
            backend.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        if self.command != "HEAD":
            headers["content-length"] = str(len(content))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextmanager
def google_front(s3_endpoint: str) -> Iterator[str]:
    """Serve the XML API of Google Cloud Storage in front of an S3 server; yield its address."""
    handler = type("Front", (_Front,), {"backend": urlsplit(s3_endpoint).netloc})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

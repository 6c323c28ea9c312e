"""An OpenAI-compatible server with large answers: `python -m tests.faults.large`; prints its port.

A request body sets the size of its answer (`"x_bytes": 12000000`) or its number of vectors of 1,024
numbers (`"x_vectors": 1000`), its kind (`"x_kind"`, a key of `KINDS`), and whether it is sent without
a length (`"x_chunked": true`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.command import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_BYTES = 65536
_CHAT = '{"object":"chat.completion",'
# Head, repeated unit and tail of an answer.
KINDS = {
    "plain": (_CHAT + '"text":"', "x", '"}'),
    "emoji": (_CHAT + '"text":"', "\N{GRINNING FACE}", '"}'),
    # One such character makes Python store every other in four bytes too.
    "one emoji": (_CHAT + '"text":"', "x", '\N{GRINNING FACE}"}'),
    # Parsed into Python objects, these take twenty times the memory.
    "usage": (_CHAT + '"usage":{"prompt_tokens":[[]', ",[]", "]}}"),
}
_NUMBERS = b",".join(b"-0.%018d" % (number * 7919) for number in range(1024))


@contextmanager
def answering() -> Iterator[str]:
    """Run the server for the block; yield its URL."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.large"],
        cwd=Path(__file__).parents[2], env=clean_environment(), stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def vectors(count: int) -> bytes:
    """Return an embeddings answer of about 22 kB per vector."""
    rows = [
        b'{"object":"embedding","index":%d,"embedding":[%b]}' % (number, _NUMBERS)
        for number in range(count)
    ]
    return (
        b'{"object":"list","data":[' + b",".join(rows) + b'],"model":"m","usage":'
        b'{"prompt_tokens":8,"total_tokens":8}}'
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Report a healthy engine with one model."""
        content = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
        self._start(len(content))
        self.wfile.write(content)

    def do_POST(self) -> None:
        """Answer as the body demands."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "x_vectors" in body:
            content = vectors(body["x_vectors"])
            self._start(len(content))
            self.wfile.write(content)
            return
        try:
            kind = body.get("x_kind", "plain")
            self._text(body.get("x_bytes", 100), kind, chunked=body.get("x_chunked", False))
        except ConnectionError:
            self.close_connection = True

    def _text(self, size: int, kind: str, *, chunked: bool) -> None:
        head, unit, tail = (part.encode() for part in KINDS[kind])
        units = max(size - len(head) - len(tail), 0) // len(unit)
        # White space fills up the last partial unit.
        head += b" " * (size - len(head) - len(tail) - units * len(unit))
        self._start(None if chunked else len(head) + units * len(unit) + len(tail))
        self._part(head, chunked=chunked)
        piece = _PIECE_BYTES // len(unit)
        for remaining in range(units, 0, -piece):
            self._part(unit * min(piece, remaining), chunked=chunked)
        self._part(tail, chunked=chunked)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _part(self, data: bytes, *, chunked: bool) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    def _start(self, size: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if size is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    server = _Server(("127.0.0.1", 0), _Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()

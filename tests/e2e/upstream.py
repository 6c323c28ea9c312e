"""An OpenAI-compatible server as its own process: `python -m tests.e2e.upstream FOLDER`.

It records every request body and answers with a body that contains it. A body may script its
answers: `"x_statuses": [429, 200]` are the statuses of its first two attempts; later ones get the
last. The server prints its port first.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

RETRY_AFTER = 1
KEY = "upstream-key"


@dataclass(frozen=True)
class Attempt:
    """A request that the server received; `at` is in seconds of a monotonic clock."""

    path: str
    body: bytes
    status: int
    at: float


def answer(body: bytes, status: int = 200) -> bytes:
    """Return the exact answer to a request, in a form that any JSON rewrite would change."""
    digest = hashlib.sha256(body).hexdigest().encode()
    if status == 200:
        return (
            b'{"id":"up-'
            + digest
            + b'", "zebra" : 1.0,"apple":1,"n":123456789012345678901234567890,'
            b'"e":1E5,"tiny":1e-400,"twice":1,"twice":2,"text":"\\u00e9\\ud83d\\ude00\\/ \xc3\xa9\xf0\x9f\x90\x9a",'
            b'"request":' + body + b',"usage":{"prompt_tokens":3,'
            b'"completion_tokens":4,"total_tokens":7}}'
        )
    return (
        b'{"error":{"message":"No: ' + digest + b'","type":"t","param":null,"code":null}, "z":1.0}'
    )


def attempts(folder: Path) -> list[Attempt]:
    """Return the attempts that the server of `folder` has recorded so far."""
    lines = (folder / "attempts.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [
        Attempt(one["path"], base64.b64decode(one["body"]), one["status"], one["at"])
        for one in records
    ]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # the default of 5 drops connections of a starting worker


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counts: ClassVar[Counter[bytes]] = Counter()
    lock: ClassVar = threading.Lock()
    record: ClassVar[Any] = None

    def do_POST(self) -> None:
        """Record the request and answer it."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = 401
        with self.lock:
            if self.headers["Authorization"] == f"Bearer {KEY}":
                script = json.loads(body).get("x_statuses", [200])
                status = script[min(self.counts[body], len(script) - 1)]
            self.counts[body] += 1
            line = {
                "path": self.path,
                "body": base64.b64encode(body).decode(),
                "status": status,
                "at": time.monotonic(),
            }
            print(json.dumps(line), file=self.record, flush=True)
        content = answer(body, status)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("x-request-id", f"up-{hashlib.sha256(body).hexdigest()[:8]}")
        if status == 429:
            self.send_header("Retry-After", str(RETRY_AFTER))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def main() -> None:
    """Serve until killed."""
    folder = Path(sys.argv[1])
    with (folder / "attempts.jsonl").open("w") as _Handler.record:
        server = _Server(("127.0.0.1", 0), _Handler)
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

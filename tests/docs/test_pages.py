"""Every block that can run does, page by page and in order, as a reader types it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.docs.pages import pages, parse
from tests.docs.reader import STARTS_OR_STOPS, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.docs.pages import Block

pytestmark = pytest.mark.slow


def runnable(page: str) -> list[Block]:
    """Return the blocks of a page that can run."""
    return [block for block in parse(page)[0] if block.reason is None]


def starts(page: str) -> bool:
    """Return whether a page starts its own stack, so that none may run before it."""
    found = [STARTS_OR_STOPS.search(block.source) for block in runnable(page)]
    return next((match[1] == "up" for match in found if match), False)


def restarts(page: str) -> bool:
    """Return whether a page starts or stops a stack at all."""
    return any(STARTS_OR_STOPS.search(block.source) for block in runnable(page))


# Pages that share the prepared stack come first, so that it starts once.
PAGES = sorted(filter(runnable, pages()), key=lambda page: (restarts(page), starts(page)))
CREATES = "tenants create acme"


class Engine(BaseHTTPRequestHandler):
    """An OpenAI-compatible engine, in place of the reader's own."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Report health, and one model."""
        self._reply({"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        """Answer every request."""
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "bug"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}
        self._reply({"object": "chat.completion", "choices": [choice], "usage": usage})

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _reply(self, body: object) -> None:
        content = msgspec.json.encode(body)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class EngineServer(ThreadingHTTPServer):
    """The engine's server; connections of a worker that starts all arrive at once."""

    daemon_threads = True
    request_queue_size = 1024


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """The URL of the reader's own engine."""
    server = EngineServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def reader(engine: str) -> Iterator[Reader]:
    """The reader of all pages."""
    person = Reader(engine)
    yield person
    person.close()


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_in_order(reader: Reader, page: str) -> None:
    reader.open(prepared=not starts(page))
    if not restarts(page):
        reader.provide_tenant(exists=not any(CREATES in block.source for block in runnable(page)))
    for block in runnable(page):
        reader.run(block)

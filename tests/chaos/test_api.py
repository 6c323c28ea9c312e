"""The client of a chaos run retries and reports every 500."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos.api import Api
from tests.chaos.control import HOST
from tests.chaos.observer import Findings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def answering(statuses: Sequence[int]) -> Iterator[str]:
    """Yield the URL of a server that answers successive requests with these statuses."""
    remaining = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"id":"batch_1"}'
            self.send_response(remaining.pop(0))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("statuses", "evidence"),
    [
        pytest.param((503, 504, 200), [], id="503 and 504"),
        pytest.param((500, 200), ['GET /v1/batches/1: {"id":"batch_1"}'], id="500"),
    ],
)
def test_only_http_500_is_reported_as_violation(statuses: list[int], evidence: list[str]) -> None:
    findings = Findings()
    with answering(statuses) as url:
        api = Api(url, "key", findings.report)
        assert api.batch("1") == {"id": "batch_1"}
        api.close()
    assert [(one.invariant, one.evidence) for one in findings.all] == [
        ("http 500", each) for each in evidence
    ]

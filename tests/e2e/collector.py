"""An OpenTelemetry collector for tests that accepts OTLP over HTTP and keeps every span."""

from __future__ import annotations

import gzip
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lowtide.local.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Span:
    """A span as exported: hexadecimal ids, `parent` empty for a root span, times in seconds."""

    name: str
    kind: int
    service: str
    trace_id: str
    span_id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    failed: bool
    began: float
    ended: float


class Collector(ThreadingHTTPServer):
    """Answer like a collector; `spans` holds the spans received so far."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.spans: list[Span] = []
        self.paths: set[str] = set()

    @property
    def url(self) -> str:
        """The value of `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        return f"http://{HOST}:{self.server_port}"

    def stop(self) -> None:
        """Stop answering; idempotent."""
        self.shutdown()
        self.server_close()

    def of(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace, oldest first."""
        spans = [span for span in list(self.spans) if span.trace_id == trace_id]
        return sorted(spans, key=lambda span: span.began)

    def take(self, body: bytes) -> None:
        """Store the spans of one export."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_span(span, attributes) for span in scope.spans]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.paths.add(self.path)
        self.server.take(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def _span(span: Any, resource: Mapping[str, Any]) -> Span:
    return Span(
        name=span.name,
        kind=span.kind,
        service=resource["service.name"],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        attributes=_values(span.attributes),
        resource=resource,
        failed=span.status.code == 2,
        began=span.start_time_unix_nano / 1e9,
        ended=span.end_time_unix_nano / 1e9,
    )


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector for the block, or until it is stopped."""
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.stop()
        thread.join()

"""Tracing with OpenTelemetry. Import it only if the environment enables tracing."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from lowtide.telemetry.tracing import ScopedSpan, SpanKind, TraceContext, Untraced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.trace.export import SpanExporter

    from lowtide.telemetry.tracing import Attributes


_KINDS: Final = {kind: trace.SpanKind[kind.name] for kind in SpanKind}
# While the collector is unreachable, the exporter and its thread log several times per export; the
# last logger quotes the invalid tracestate of a caller.
_CHATTY: Final = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.trace.span",
)
_SILENCE_SECONDS: Final = 60.0


class RecordedSpan(ScopedSpan):
    """A span of the SDK, recorded or dropped by its sampler."""

    def __init__(self, span: trace.Span, attributes: Attributes | None) -> None:
        super().__init__(_context_of(span.get_span_context()), attributes)
        self._span = span

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""
        super().note(attributes)
        self._span.set_attributes(dict(attributes))

    def fail(self, kind: str) -> None:
        """Mark the work as failed with the error's class, as its text may contain user data."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        """Queue the span for export."""
        self._span.end()


class OpenTelemetryTracer(Untraced):
    """Record spans with the SDK and export them."""

    def __init__(self, resource: Mapping[str, str], exporter: SpanExporter | None = None) -> None:
        """Start the exporter's thread, which does not survive a fork.

        `resource` describes the process; `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`
        override it.
        """
        for name in _CHATTY:
            logging.getLogger(name).addFilter(_RateLimit())
        process = Resource(dict(resource)).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(
            resource=Resource.create().merge(process), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("lowtide")

    @property
    def is_on(self) -> bool:
        """True, as spans are recorded."""
        return True

    def start(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
        attributes: Attributes | None = None,
    ) -> RecordedSpan:
        """Start a span, which the caller must end."""
        span = self._tracer.start_span(
            name,
            context=_parent_of(parent or self.current()),
            kind=_KINDS[kind],
            links=[trace.Link(_span_context(link)) for link in links],
            attributes=attributes,
        )
        return RecordedSpan(span, attributes)

    def close(self, seconds: float) -> None:
        """Export the remaining spans, for at most `seconds`."""
        # The provider's own limit is 30 s, and more while the collector is unreachable.
        shutdown = threading.Thread(target=self._provider.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(seconds)


class _RateLimit(logging.Filter):
    """Pass one record a minute, of level ERROR or above."""

    def __init__(self) -> None:
        super().__init__()
        self._next_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR or record.created < self._next_at:
            return False
        self._next_at = record.created + _SILENCE_SECONDS
        return True


def _context_of(span: SpanContext) -> TraceContext:
    return TraceContext(
        trace.format_trace_id(span.trace_id),
        trace.format_span_id(span.span_id),
        span.trace_flags.sampled,
        span.trace_state.to_header(),
    )


def _span_context(context: TraceContext) -> SpanContext:
    return SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([context.state]) if context.state else None,
    )


def _parent_of(context: TraceContext | None) -> Context:
    # Without a parent the context is empty, and never a library's current one.
    span = trace.INVALID_SPAN if context is None else NonRecordingSpan(_span_context(context))
    return trace.set_span_in_context(span, Context())

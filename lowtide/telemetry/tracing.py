"""Tracing: W3C trace context, the Tracer protocol, and the log fields of spans."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager


_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span that others may continue; `state` is vendor data, passed on unchanged."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    @property
    def traceparent(self) -> str:
        """The value of the header and event attribute `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_trace(traceparent: str | None, tracestate: str | None = None) -> TraceContext | None:
    """Parse a traceparent; return None if it is missing or invalid.

    A version above 00 may have more fields, which are ignored, as the recommendation requires.
    """
    match = _TRACEPARENT.fullmatch((traceparent or "").strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, further_fields = match.groups()
    if version == "ff" or (version == "00" and further_fields is not None):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    state = (tracestate or "").strip()
    if _TRACESTATE.fullmatch(state) is None:
        state = ""
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1), state)


Attributes = Mapping[str, str | int | float | bool]

BATCH: Final = "lowtide.batch.id"
TENANT: Final = "lowtide.tenant.id"
REQUEST: Final = "lowtide.request.id"


class SpanKind(StrEnum):
    """OpenTelemetry's kinds of spans."""

    INTERNAL = "internal"
    SERVER = "server"
    PRODUCER = "producer"
    CONSUMER = "consumer"


class Span(Protocol):
    """A unit of work. Attributes hold ids, counts and kinds, never user data."""

    @property
    def context(self) -> TraceContext | None:
        """The context for work that this work causes; None outside a trace."""
        ...

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""
        ...

    def fail(self, kind: str) -> None:
        """Mark the work as failed; `kind` is the class of the error."""
        ...

    def end(self) -> None:
        """End the span. Never blocks, never raises."""
        ...


class Tracer(Protocol):
    """A source of spans."""

    @property
    def is_on(self) -> bool:
        """True if spans are recorded."""
        ...

    def current(self) -> TraceContext | None:
        """Return the context of the current span, or None."""
        ...

    def start(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
        attributes: Attributes | None = None,
    ) -> Span:
        """Start a span, which the caller must end; `parent` defaults to the current span."""
        ...

    def inside(self, span: Span) -> AbstractContextManager[None]:
        """Make a span the current one of a block's spans and log records."""
        ...

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
        attributes: Attributes | None = None,
    ) -> AbstractContextManager[Span]:
        """Run a block in a span; an exception marks the span as failed and propagates."""
        ...

    def close(self, seconds: float) -> None:
        """Export the remaining spans, for at most `seconds`."""
        ...


_FIELDS: Final = {BATCH: "batch_id", TENANT: "tenant_id", REQUEST: "request_id"}
"""The attributes that log records carry, with their names there."""

_CURRENT: ContextVar[ScopedSpan | None] = ContextVar("lowtide_scope", default=None)


class ScopedSpan:
    """The common part of spans: the context and the log fields."""

    def __init__(self, context: TraceContext | None, attributes: Attributes | None = None) -> None:
        outer = _CURRENT.get()
        self._context = context
        self.fields: dict[str, object] = {} if outer is None else dict(outer.fields)
        if attributes:
            self._keep_fields(attributes)

    @property
    def context(self) -> TraceContext | None:
        """The context for work that this work causes."""
        return self._context

    def note(self, attributes: Attributes) -> None:
        """Keep the attributes that log records carry."""
        self._keep_fields(attributes)

    def fail(self, kind: str) -> None:
        """Do nothing, as the span is not recorded."""

    def end(self) -> None:
        """Do nothing, as the span is not recorded."""

    def _keep_fields(self, attributes: Attributes) -> None:
        for name, field in _FIELDS.items():
            if name in attributes:
                self.fields[field] = attributes[name]


class Untraced:
    """The Tracer while tracing is off: contexts are passed on, and log records carry them."""

    @property
    def is_on(self) -> bool:
        """False, as spans are not recorded."""
        return False

    def current(self) -> TraceContext | None:
        """Return the context of the current span, or None."""
        span = _CURRENT.get()
        return None if span is None else span.context

    def start(
        self,
        name: str,  # noqa: ARG002
        *,
        kind: SpanKind = SpanKind.INTERNAL,  # noqa: ARG002
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),  # noqa: ARG002
        attributes: Attributes | None = None,
    ) -> ScopedSpan:
        """Start a span that is not recorded."""
        return ScopedSpan(parent or self.current(), attributes)

    @contextmanager
    def inside(self, span: Span) -> Iterator[None]:
        """Make a span the current one of a block's spans and log records."""
        token = _CURRENT.set(span if isinstance(span, ScopedSpan) else None)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
        attributes: Attributes | None = None,
    ) -> Iterator[Span]:
        """Run a block in a span; an exception marks the span as failed and propagates."""
        span = self.start(name, kind=kind, parent=parent, links=links, attributes=attributes)
        try:
            with self.inside(span):
                yield span
        except BaseException as error:
            span.fail(type(error).__qualname__)
            raise
        finally:
            span.end()

    def close(self, seconds: float) -> None:
        """Do nothing, as no spans remain."""


UNTRACED: Final = Untraced()


def log_fields() -> dict[str, object]:
    """Return the log fields of the current span."""
    span = _CURRENT.get()
    if span is None:
        return {}
    if span.context is None:
        return span.fields
    return {"trace_id": span.context.trace_id, "span_id": span.context.span_id, **span.fields}


PREFIX: Final = "OTEL_"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Return True if a collector is configured and tracing is not disabled."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return any(environment.get(name, "").strip() for name in _ENDPOINTS)

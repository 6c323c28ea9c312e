"""What a thread or task is working on: its place in a trace, and ids for its log lines."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from lowtide.ports.tracing import BATCH, REQUEST, TENANT, SpanKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowtide.domain.traces import TraceContext
    from lowtide.ports.tracing import Attributes, Span

_FIELDS: Final = {BATCH: "batch_id", TENANT: "tenant_id", REQUEST: "request_id"}
"""Attributes that log lines carry, and what they are called there."""

_CURRENT: ContextVar[ScopedSpan | None] = ContextVar("lowtide_scope", default=None)


class ScopedSpan:
    """Port Span, as far as every tracer does the same: a context that is handed on, and log fields."""

    def __init__(self, context: TraceContext | None, attributes: Attributes | None = None) -> None:
        around = _CURRENT.get()
        self._context = context
        self.fields: dict[str, object] = {} if around is None else dict(around.fields)
        if attributes:
            self._keep(attributes)

    @property
    def context(self) -> TraceContext | None:
        """Where what this work causes goes on."""
        return self._context

    def note(self, attributes: Attributes) -> None:
        """Keep what log lines show."""
        self._keep(attributes)

    def fail(self, kind: str) -> None:
        """Nobody is told."""

    def end(self) -> None:
        """Nobody is told."""

    def _keep(self, attributes: Attributes) -> None:
        for name, field in _FIELDS.items():
            if name in attributes:
                self.fields[field] = attributes[name]


class Untraced:
    """Port Tracer where tracing is off: contexts pass through, and log lines show them."""

    @property
    def is_on(self) -> bool:
        """Nobody is told."""
        return False

    def current(self) -> TraceContext | None:
        """Return where the caller is."""
        around = _CURRENT.get()
        return None if around is None else around.context

    def start(
        self,
        name: str,  # noqa: ARG002
        *,
        kind: SpanKind = SpanKind.INTERNAL,  # noqa: ARG002
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),  # noqa: ARG002
        attributes: Attributes | None = None,
    ) -> ScopedSpan:
        """Start a span that nobody is told of."""
        return ScopedSpan(parent or self.current(), attributes)

    @contextmanager
    def inside(self, span: Span) -> Iterator[None]:
        """Let a block's spans and log lines belong to a span."""
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
        """Run a block as a span; what it raises marks the span as failed and goes on."""
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
        """Nothing is left."""


UNTRACED: Final = Untraced()


def log_fields() -> dict[str, object]:
    """Return what a log line says of where it comes from."""
    span = _CURRENT.get()
    if span is None:
        return {}
    if span.context is None:
        return span.fields
    return {"trace_id": span.context.trace_id, "span_id": span.context.span_id, **span.fields}

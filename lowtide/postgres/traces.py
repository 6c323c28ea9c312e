"""A row's place in a trace: the columns `traceparent` and `tracestate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowtide.domain.traces import parse_trace

if TYPE_CHECKING:
    from lowtide.domain.traces import TraceContext


def trace_columns(trace: TraceContext | None) -> dict[str, str | None]:
    """Return the parameters of both columns."""
    if trace is None:
        return {"traceparent": None, "tracestate": None}
    return {"traceparent": trace.traceparent, "tracestate": trace.state or None}


def trace_of(row: Any) -> TraceContext | None:
    """Return what a row with both columns continues."""
    return parse_trace(row.traceparent, row.tracestate)

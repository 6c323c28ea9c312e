"""A row's place in a trace: the columns `traceparent` and `tracestate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.domain.ids import BatchId
from lowtide.domain.traces import parse_trace

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

    from lowtide.domain.traces import TraceContext


_OF_BATCHES = text("SELECT id, traceparent, tracestate FROM batches WHERE id = ANY(:batches)")


def trace_columns(trace: TraceContext | None) -> dict[str, str | None]:
    """Return the parameters of both columns."""
    if trace is None:
        return {"traceparent": None, "tracestate": None}
    return {"traceparent": trace.traceparent, "tracestate": trace.state or None}


def trace_of(row: Any) -> TraceContext | None:
    """Return what a row with both columns continues."""
    return parse_trace(row.traceparent, row.tracestate)


def traces_of(
    connection: Connection, batches: Collection[BatchId]
) -> dict[BatchId, TraceContext | None]:
    """Return what each of these batches continues."""
    if not batches:
        return {}
    rows = connection.execute(_OF_BATCHES, {"batches": list(batches)})
    return {BatchId(row.id): trace_of(row) for row in rows}

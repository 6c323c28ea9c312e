"""A worker's spans: one per claimed set, and one per batch in it with the outcomes."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lowtide.core.ids import DEFAULT_TENANT, BatchId, format_batch_id
from lowtide.core.pools import Pool
from lowtide.engines.outcomes import Usage
from lowtide.queue.claims import Claim, Finished, Returned
from lowtide.telemetry.otel import OpenTelemetryTracer
from lowtide.telemetry.tracing import UNTRACED, TraceContext
from lowtide.worker.spans import SetSpans

if TYPE_CHECKING:
    import pytest

ONE, TWO, OLD = (BatchId(uuid.UUID(int=n)) for n in (1, 2, 3))
TRACES = {ONE: TraceContext("a" * 32, "1" * 16, True), TWO: TraceContext("b" * 32, "2" * 16, True)}


def claim(batch: BatchId, line: int) -> Claim:
    return Claim(
        batch, "/v1/chat/completions", "key", line, 0, 1, 0, 0, 0.0, None, DEFAULT_TENANT,
        TRACES.get(batch),
    )  # fmt: skip


def answered(batch: BatchId, line: int, *, succeeded: bool = True) -> Finished:
    return Finished(batch, line, succeeded, 1, Usage(3, 5))


def test_claimed_set_has_one_span_in_each_batch_trace() -> None:
    exporter = InMemorySpanExporter()
    tracer = OpenTelemetryTracer({}, exporter)
    claims = [claim(ONE, 1), claim(TWO, 1), claim(ONE, 2), claim(ONE, 3), claim(OLD, 1)]
    claims += [claim(ONE, 4), claim(ONE, 5)]
    spans = SetSpans(tracer, Pool.SPOT, claims)
    contexts = {batch: spans.trace_of(batch) for batch in (ONE, TWO)}
    with spans.working():
        spans.add([answered(ONE, 1), answered(TWO, 1)])
        spans.add(
            [
                answered(ONE, 2, succeeded=False),
                Returned(ONE, 3, "gone", interrupted=True),
                Returned(ONE, 4, "HTTP 500", failed=True),
                answered(OLD, 1),
            ]
        )
    tracer.close(5)
    exported = exporter.get_finished_spans()
    (of_set,) = (span for span in exported if span.name == "infer set spot")
    shares = {span.attributes["lowtide.batch.id"]: span for span in exported if span is not of_set}  # type: ignore[index]
    assert [link.context.span_id for link in of_set.links] == [
        int(TRACES[batch].span_id, 16) for batch in (ONE, TWO)
    ]
    assert of_set.parent is None
    one = shares[format_batch_id(ONE)]
    for batch, context in contexts.items():
        share = shares[format_batch_id(batch)]
        assert share.parent is not None
        assert f"{share.context.trace_id:032x}" == TRACES[batch].trace_id
        assert f"{share.parent.span_id:016x}" == TRACES[batch].span_id
        assert [link.context.span_id for link in share.links] == [of_set.context.span_id]
        # Requests to the engine carry the context of the share, not of the batch.
        assert context is not None
        assert context.span_id == f"{share.context.span_id:016x}"
    assert dict(one.attributes or {}) == {
        "lowtide.pool": "spot",
        "lowtide.batch.id": format_batch_id(ONE),
        "lowtide.tenant.id": str(DEFAULT_TENANT),
        "gen_ai.operation.name": "chat",
        "messaging.batch.message_count": 5,
        "lowtide.lines.succeeded": 1,
        "lowtide.lines.failed": 1,
        "lowtide.lines.retried": 1,
        "lowtide.lines.interrupted": 1,
        "lowtide.lines.unfinished": 1,
        "gen_ai.usage.input_tokens": 6,
        "gen_ai.usage.output_tokens": 10,
    }
    # A batch without a trace starts one of its own.
    assert shares[format_batch_id(OLD)].parent is None


def test_only_sets_with_unsuccessful_requests_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for outcome in (answered(ONE, 1), Returned(ONE, 1, "gone", interrupted=True)):
        spans = SetSpans(UNTRACED, Pool.SPOT, [claim(ONE, 1)])
        assert spans.trace_of(ONE) == TRACES[ONE]
        with spans.working():
            assert UNTRACED.current() == TRACES[ONE]
            spans.add([outcome])
    (record,) = caplog.records
    assert record.message == "lines.unsuccessful"
    assert vars(record)["interrupted"] == 1

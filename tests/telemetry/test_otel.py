"""The OpenTelemetry adapter: exported spans, and an exporter that hangs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lowtide.telemetry.otel import OpenTelemetryTracer
from lowtide.telemetry.tracing import BATCH, SpanKind, TraceContext, is_wanted, log_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

PARENT = TraceContext("a" * 32, "b" * 16, True, "vendor=1")
UNSAMPLED = TraceContext("c" * 32, "d" * 16, False)


class BlockingExporter(SpanExporter):
    """An exporter that blocks until it is released."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.released = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        self.called.set()
        self.released.wait(30)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Ignore the shutdown."""


@pytest.fixture(autouse=True)
def _without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)


def exported_spans(work: Any, resource: dict[str, str] | None = None) -> dict[str, ReadableSpan]:
    """Return the spans that `work` exported, by name."""
    exporter = InMemorySpanExporter()
    tracer = OpenTelemetryTracer(resource or {}, exporter)
    work(tracer)
    tracer.close(5)
    return {span.name: span for span in exporter.get_finished_spans()}


def test_spans_continue_parent_and_nest() -> None:
    def work(tracer: OpenTelemetryTracer) -> None:
        with (
            tracer.span(
                "outer", kind=SpanKind.SERVER, parent=PARENT, attributes={BATCH: "batch_1"}
            ),
            tracer.span("inner", links=[UNSAMPLED]) as inner,
        ):
            inner.note({"lowtide.lines": 3})
            assert inner.context is not None
            assert log_fields() == {
                "trace_id": PARENT.trace_id, "span_id": inner.context.span_id, "batch_id": "batch_1",
            }  # fmt: skip
            assert inner.context.state == PARENT.state

    spans = exported_spans(work)
    outer, inner = spans["outer"], spans["inner"]
    assert outer.parent is not None
    assert inner.parent is not None
    assert f"{outer.parent.trace_id:032x}" == f"{inner.context.trace_id:032x}" == PARENT.trace_id
    assert f"{outer.parent.span_id:016x}" == PARENT.span_id
    assert inner.parent.span_id == outer.context.span_id
    assert outer.kind.name == "SERVER"
    assert dict(inner.attributes or {}) == {"lowtide.lines": 3}
    assert [f"{link.context.trace_id:032x}" for link in inner.links] == [UNSAMPLED.trace_id]


def test_span_without_parent_starts_trace() -> None:
    def work(tracer: OpenTelemetryTracer) -> None:
        for name in ("one", "two"):
            tracer.start(name).end()

    spans = exported_spans(work)
    assert [span.parent for span in spans.values()] == [None, None]
    assert len({span.context.trace_id for span in spans.values()}) == 2


def test_unsampled_trace_is_propagated_but_not_exported() -> None:
    contexts: list[TraceContext | None] = []

    def work(tracer: OpenTelemetryTracer) -> None:
        with tracer.span("unsampled", parent=UNSAMPLED) as span:
            contexts.append(span.context)

    assert exported_spans(work) == {}
    assert contexts[0] is not None
    assert (contexts[0].trace_id, contexts[0].sampled) == (UNSAMPLED.trace_id, False)


def test_failed_span_has_error_class_but_no_message() -> None:
    def work(tracer: OpenTelemetryTracer) -> None:
        with pytest.raises(ValueError, match="secret"), tracer.span("failing"):
            raise ValueError("secret prompt")

    failing = exported_spans(work)["failing"]
    assert not failing.status.is_ok
    assert dict(failing.attributes or {}) == {"error.type": "ValueError"}
    assert "secret" not in failing.to_json()


def test_environment_overrides_resource_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    defaults = {"service.name": "lowtide-split", "faas.name": "split"}
    resource = exported_spans(lambda tracer: tracer.start("s").end(), defaults)[
        "s"
    ].resource.attributes
    assert resource["service.name"] == "mine"
    assert resource["deployment.environment.name"] == "test"
    assert resource["faas.name"] == "split"


def test_hanging_exporter_does_not_delay_spans_or_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    exporter = BlockingExporter()
    tracer = OpenTelemetryTracer({}, exporter)
    try:
        for _ in range(8):
            tracer.start("first").end()
        assert exporter.called.wait(10)
        began = time.monotonic()
        for _ in range(5000):
            tracer.start("later").end()
        assert time.monotonic() - began < 5
        began = time.monotonic()
        tracer.close(0.2)
        assert 0.1 < time.monotonic() - began < 5
    finally:
        exporter.released.set()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({}, False, id="nothing"),
        pytest.param({"OTEL_SERVICE_NAME": "x"}, False, id="name only"),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True, id="endpoint"),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/t"}, True, id="traces endpoint"
        ),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False, id="empty"),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"},
            False,
            id="disabled",
        ),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"},
            False,
            id="no exporter",
        ),
    ],
)
def test_environment_switches_tracing_on(environment: dict[str, str], expected: bool) -> None:
    assert is_wanted(environment) is expected

"""One trace from the upload to the output file, in the exported spans and in the logs."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.collector import Collector, Span, collecting
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.stacks import LocalStack, running
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS = 150
TRACE, CALLER = "5b8aa5a2d2c872e8321cf37308d69df2", "051581bf3cb55c13"
CREATED = "create batch"
SETTINGS = {
    "LOWTIDE_LOG_FORMAT": "json",
    "LOWTIDE_SIMULATED_LATENCY": "0.03",
    "LOWTIDE_SIMULATED_INTERRUPTION_RATE": "0.2",
    "LOWTIDE_SIMULATED_FAILURE_RATE": "0.1",
    "LOWTIDE_RETRY_BASE": "0.1",
    "LOWTIDE_MAX_ATTEMPTS": "20",
    "LOWTIDE_LEASE_DURATION": "3",
    "LOWTIDE_TICK": "2",
    "LOWTIDE_STALLED_AFTER": "3",
    "OTEL_BSP_SCHEDULE_DELAY": "200",
}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def traced(collector: Collector) -> Iterator[LocalStack]:
    with running(SETTINGS | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}) as stack:
        yield stack


def log_lines(stack: LocalStack) -> list[dict[str, Any]]:
    """Return the JSON log lines of the functions."""
    texts = (line.partition("| ")[2] for line in stack.log().splitlines())
    return [json.loads(text) for text in texts if text.startswith("{")]


def only(spans: list[Span], name: str, service: str) -> Span:
    """Return the only span with this name and service."""
    (match,) = (span for span in spans if (span.name, span.service) == (name, service))
    return match


def test_one_trace_spans_upload_to_output_file(traced: LocalStack, collector: Collector) -> None:
    source = chat_file(REQUESTS)
    uploaded = traced.client.files.with_raw_response.create(
        file=("input.jsonl", source),
        purpose="batch",
        extra_headers={"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"},
    )
    assert uploaded.headers["traceresponse"].startswith(f"00-{TRACE}-")
    # The create call carries no trace context, so that the file's trace continues.
    batch = traced.submit(uploaded.parse().id)
    until(traced.workers, "a worker")
    # The processes that replace the killed ones continue the same trace.
    traced.kill("finalize")
    traced.kill(traced.workers()[0].name)
    final = traced.finish(batch, source, answers=simulated_answer)
    assert final["x_lowtide"]["interruptions"] > 0
    spans = until(lambda: complete_trace(collector, TRACE), "the trace is complete")

    upload = only(spans, "POST /v1/files", "lowtide-upload")
    stored = only(spans, "store file", "lowtide-upload")
    created = only(spans, CREATED, "lowtide-create-batch")
    received = only(spans, "process dev.lowtide.batch.created", "lowtide-split")
    split = only(spans, "split", "lowtide-split")
    finalize = only(spans, "finalize", "lowtide-finalize")
    drained = next(span for span in spans if span.span_id == finalize.parent)
    shares = [span for span in spans if span.name == "infer spot"]
    assert (upload.parent, stored.parent, created.parent) == (
        CALLER, upload.span_id, stored.span_id,
    )  # fmt: skip
    assert (received.parent, split.parent) == (created.span_id, received.span_id)
    assert drained.name == "process dev.lowtide.batch.drained"
    assert drained.parent == created.span_id
    assert {span.parent for span in shares} == {created.span_id}
    # The create call has its own trace, which is linked.
    ((create_trace, _),) = created.links
    assert only(collector.of(create_trace), "POST /v1/batches", "lowtide-create-batch")
    sets = {span.span_id: span for span in list(collector.spans) if span.name == "infer set spot"}
    for share in shares:
        ((_, of_set),) = share.links
        assert (TRACE, created.span_id) in sets[of_set].links
    assert outcome_counts(shares)["succeeded"] > 0
    assert outcome_counts(shares)["interrupted"] > 0
    assert all(span.attributes["lowtide.batch.id"] == batch for span in shares)
    assert stored.attributes["lowtide.lines"] == split.attributes["lowtide.lines"] == REQUESTS
    assert finalize.attributes["lowtide.batch.completed"] == REQUESTS
    assert upload.attributes["http.response.status_code"] == 200
    assert not [span for span in spans if span.failed and not span.name.startswith("send ")]
    assert collector.paths == {"/v1/traces"}
    check_content(spans, source)
    rows = traced.query("SELECT traceparent FROM files WHERE purpose = 'batch_output'")
    assert [row.traceparent[3:35] for row in rows] == [TRACE] * len(rows)


def complete_trace(collector: Collector, trace: str) -> list[Span]:
    """Return the spans of a trace once it is finalized and every parent and link has arrived."""
    spans = collector.of(trace)
    known = {span.span_id for span in list(collector.spans)} | {CALLER}
    referenced = {span.parent for span in spans} | {of for span in spans for _, of in span.links}
    is_finalized = any(span.name == "finalize" for span in spans)
    return spans if is_finalized and referenced <= known else []


def outcome_counts(shares: list[Span]) -> Counter[str]:
    """Sum the outcomes of shares; assert that each share accounts for all of its requests."""
    total = Counter[str]()
    for share in shares:
        outcomes = {
            name.rpartition(".")[2]: value
            for name, value in share.attributes.items()
            if name.startswith("lowtide.lines.")
        }
        assert sum(outcomes.values()) == share.attributes["messaging.batch.message_count"]
        total.update(outcomes)
    return total


def check_content(spans: list[Span], source: bytes) -> None:
    """Assert that no span contains text of a request, an answer or the key."""
    attributes = json.dumps([dict(span.attributes) for span in spans])
    for word in ("how high", "Simulated answer", "line-7", "Bearer", "tide-1"):
        assert word not in attributes
    assert b"how high" in source


def test_log_lines_carry_trace_tenant_and_batch(traced: LocalStack) -> None:
    of_trace = [line for line in log_lines(traced) if line.get("trace_id") == TRACE]
    events = {(line["function"], line["event"]) for line in of_trace}
    assert events >= {
        ("upload", "file.stored"), ("create_batch", "batch.created"), ("split", "batch.split"),
        ("infer_spot", "lines.unsuccessful"), ("finalize", "batch.finalized"),
    }  # fmt: skip
    for line in of_trace:
        assert len(line["span_id"]) == 16
        assert line["tenant_id"]
        assert line["event"] == "file.stored" or line["batch_id"].startswith("batch_")
    api_lines = [line for line in of_trace if line["function"] in {"upload", "create_batch"}]
    assert all(line["request_id"].startswith("req_") for line in api_lines)


def test_batch_joins_trace_of_create_call(traced: LocalStack, collector: Collector) -> None:
    other = "0af7651916cd43dd8448eb211c80319c"
    batch = traced.client.batches.create(
        input_file_id=traced.upload(chat_file(REQUESTS)),
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_headers={"traceparent": f"00-{other}-{CALLER}-01"},
    ).id
    final = traced.follow(batch)[-1]
    spans = until(lambda: complete_trace(collector, other), "the trace is complete")
    counts = outcome_counts([span for span in spans if span.name == "infer spot"])
    assert counts == {
        "succeeded": REQUESTS,
        "failed": 0,
        "unfinished": 0,
        "retried": final["x_lowtide"]["retries"],
        "interrupted": final["x_lowtide"]["interruptions"],
    }
    assert counts["interrupted"] > 0
    assert counts["retried"] > 0
    request = only(spans, "POST /v1/batches", "lowtide-create-batch")
    created = only(spans, CREATED, "lowtide-create-batch")
    assert (request.parent, created.parent, created.links) == (CALLER, request.span_id, ())


def test_batch_completes_without_collector(traced: LocalStack, collector: Collector) -> None:
    # From here on its port is closed.
    collector.stop()
    source = chat_file(REQUESTS)
    traced.finish(traced.submit(traced.upload(source)), source, answers=simulated_answer)

"""Parsing and formatting of W3C Trace Context."""

from __future__ import annotations

import pytest

from lowtide.telemetry.tracing import TraceContext, parse_trace

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "state", "expected"),
    [
        pytest.param(GOOD, None, TraceContext(TRACE, SPAN, True), id="sampled"),
        pytest.param(GOOD[:-1] + "0", "", TraceContext(TRACE, SPAN, False), id="not sampled"),
        pytest.param(GOOD[:-2] + "03", "", TraceContext(TRACE, SPAN, True), id="other flags"),
        pytest.param(f" {GOOD} ", "", TraceContext(TRACE, SPAN, True), id="spaces around"),
        pytest.param(GOOD, "a=1,b=2", TraceContext(TRACE, SPAN, True, "a=1,b=2"), id="state"),
        pytest.param(GOOD, "a=\r\nb: 1", TraceContext(TRACE, SPAN, True), id="forged header"),
        pytest.param(GOOD, "a" * 513, TraceContext(TRACE, SPAN, True), id="state too long"),
        pytest.param(
            f"cc-{TRACE}-{SPAN}-01-more", "", TraceContext(TRACE, SPAN, True), id="later version"
        ),
        pytest.param(f"{GOOD}-more", "", None, id="more than version 00 has"),
        pytest.param(f"ff-{TRACE}-{SPAN}-01", "", None, id="version ff"),
        pytest.param(GOOD.upper(), "", None, id="capitals"),
        pytest.param(f"00-{'0' * 32}-{SPAN}-01", "", None, id="no trace"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", "", None, id="no span"),
        pytest.param(GOOD[:-1], "", None, id="short"),
        pytest.param(f"{GOOD}\nx", "", None, id="line break"),
        pytest.param("", "a=1", None, id="empty"),
        pytest.param(None, None, None, id="absent"),
    ],
)
def test_traceparent_is_parsed_or_ignored(
    text: str | None, state: str | None, expected: TraceContext | None
) -> None:
    assert parse_trace(text, state) == expected


@pytest.mark.parametrize("sampled", [True, False])
def test_trace_context_survives_round_trip(sampled: bool) -> None:
    context = TraceContext(TRACE, SPAN, sampled, "vendor=1")
    assert parse_trace(context.traceparent, context.state) == context

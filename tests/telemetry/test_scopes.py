"""Tracing off: contexts pass through, and log lines carry the fields of their spans."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import TYPE_CHECKING

import pytest

from lowtide.telemetry.logs import LogFormat, configure
from lowtide.telemetry.tracing import BATCH, REQUEST, TENANT, UNTRACED, TraceContext, log_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

PARENT = TraceContext("a" * 32, "b" * 16, True)
OTHER = TraceContext("c" * 32, "d" * 16, False)
TRACE_IDS = {"trace_id": "a" * 32, "span_id": "b" * 16}
log = logging.getLogger("lowtide.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_parent_context_passes_through() -> None:
    assert UNTRACED.current() is None
    with UNTRACED.span("outer", parent=PARENT) as outer, UNTRACED.span("inner") as inner:
        assert (outer.context, inner.context, UNTRACED.current()) == (PARENT, PARENT, PARENT)
        with UNTRACED.span("elsewhere", parent=OTHER):
            assert UNTRACED.current() == OTHER
        assert UNTRACED.current() == PARENT
    assert UNTRACED.current() is None


def test_log_fields_merge_all_enclosing_spans() -> None:
    with UNTRACED.span("outer", attributes={REQUEST: "req_1", "http.route": "/"}) as outer:
        outer.note({TENANT: "t"})
        with UNTRACED.span("inner", parent=PARENT, attributes={BATCH: "batch_1"}):
            assert log_fields() == {
                **TRACE_IDS, "request_id": "req_1", "tenant_id": "t", "batch_id": "batch_1",
            }  # fmt: skip
        assert log_fields() == {"request_id": "req_1", "tenant_id": "t"}
    assert log_fields() == {}


def test_exception_clears_log_fields() -> None:
    with pytest.raises(KeyError), UNTRACED.span("failing", parent=PARENT):
        raise KeyError
    assert log_fields() == {}


def test_threads_and_tasks_have_separate_contexts() -> None:
    recorded: list[dict[str, object]] = []

    async def task(parent: TraceContext) -> None:
        with UNTRACED.span("task", parent=parent):
            await asyncio.sleep(0)
            assert UNTRACED.current() == parent
            await asyncio.to_thread(lambda: recorded.append(log_fields()))

    async def both() -> None:
        await asyncio.gather(task(PARENT), task(OTHER))

    with UNTRACED.span("around", attributes={REQUEST: "req_1"}):
        thread = threading.Thread(target=lambda: recorded.append(log_fields()))
        thread.start()
        thread.join()
    asyncio.run(both())
    assert recorded[0] == {}
    assert {fields["trace_id"] for fields in recorded[1:]} == {"a" * 32, "c" * 32}


@pytest.mark.parametrize(
    ("log_format", "function", "present", "absent"),
    [
        pytest.param(
            LogFormat.JSON,
            "split",
            {**TRACE_IDS, "function": "split", "batch_id": "batch_1", "tenant_id": "t", "lines": 3},
            (),
            id="json",
        ),
        pytest.param(LogFormat.JSON, "", {"batch_id": "batch_1"}, ("function",), id="no function"),
        pytest.param(
            LogFormat.TEXT,
            "split",
            {"trace_id": "a" * 32, "batch_id": "batch_1", "lines": 3},
            ("span_id", "tenant_id", "function"),
            id="on a terminal",
        ),
    ],
)
def test_log_lines_carry_trace_and_domain_fields(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log_format: LogFormat,
    function: str,
    present: dict[str, object],
    absent: tuple[str, ...],
) -> None:
    monkeypatch.setenv("FUNCTION_TARGET", function)
    configure(log_format)
    with UNTRACED.span("s", parent=PARENT, attributes={BATCH: "batch_1", TENANT: "t"}):
        log.info("batch.split", extra={"lines": 3})
    text = capsys.readouterr().err
    if log_format is LogFormat.JSON:
        entry = json.loads(text)
    else:
        entry = dict(part.split("=") for part in text.split()[2:])
        present = {name: str(value) for name, value in present.items()}
    assert entry.items() >= present.items()
    assert not set(absent) & set(entry)

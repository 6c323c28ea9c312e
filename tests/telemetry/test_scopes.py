"""Where tracing is off: contexts pass through, and log lines say where they come from."""

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

GIVEN = TraceContext("a" * 32, "b" * 16, True)
OTHER = TraceContext("c" * 32, "d" * 16, False)
PLACE = {"trace_id": "a" * 32, "span_id": "b" * 16}
log = logging.getLogger("lowtide.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_given_context_passes_through() -> None:
    assert UNTRACED.current() is None
    with UNTRACED.span("outer", parent=GIVEN) as outer, UNTRACED.span("inner") as inner:
        assert (outer.context, inner.context, UNTRACED.current()) == (GIVEN, GIVEN, GIVEN)
        with UNTRACED.span("elsewhere", parent=OTHER):
            assert UNTRACED.current() == OTHER
        assert UNTRACED.current() == GIVEN
    assert UNTRACED.current() is None


def test_log_fields_are_those_of_all_spans_around() -> None:
    with UNTRACED.span("outer", attributes={REQUEST: "req_1", "http.route": "/"}) as outer:
        outer.note({TENANT: "t"})
        with UNTRACED.span("inner", parent=GIVEN, attributes={BATCH: "batch_1"}):
            assert log_fields() == {
                **PLACE, "request_id": "req_1", "tenant_id": "t", "batch_id": "batch_1",
            }  # fmt: skip
        assert log_fields() == {"request_id": "req_1", "tenant_id": "t"}
    assert log_fields() == {}


def test_what_is_raised_leaves_nothing_behind() -> None:
    with pytest.raises(KeyError), UNTRACED.span("failing", parent=GIVEN):
        raise KeyError
    assert log_fields() == {}


def test_threads_and_tasks_have_places_of_their_own() -> None:
    seen: list[dict[str, object]] = []

    async def task(given: TraceContext) -> None:
        with UNTRACED.span("task", parent=given):
            await asyncio.sleep(0)
            assert UNTRACED.current() == given
            await asyncio.to_thread(lambda: seen.append(log_fields()))

    async def both() -> None:
        await asyncio.gather(task(GIVEN), task(OTHER))

    with UNTRACED.span("around", attributes={REQUEST: "req_1"}):
        thread = threading.Thread(target=lambda: seen.append(log_fields()))
        thread.start()
        thread.join()
    asyncio.run(both())
    assert seen[0] == {}
    assert {fields["trace_id"] for fields in seen[1:]} == {"a" * 32, "c" * 32}


@pytest.mark.parametrize(
    ("log_format", "function", "has", "lacks"),
    [
        pytest.param(
            LogFormat.JSON,
            "split",
            {**PLACE, "function": "split", "batch_id": "batch_1", "tenant_id": "t", "lines": 3},
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
def test_log_lines_say_where_they_come_from(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log_format: LogFormat,
    function: str,
    has: dict[str, object],
    lacks: tuple[str, ...],
) -> None:
    monkeypatch.setenv("FUNCTION_TARGET", function)
    configure(log_format)
    with UNTRACED.span("s", parent=GIVEN, attributes={BATCH: "batch_1", TENANT: "t"}):
        log.info("batch.split", extra={"lines": 3})
    text = capsys.readouterr().err
    if log_format is LogFormat.JSON:
        found = json.loads(text)
    else:
        found = dict(part.split("=") for part in text.split()[2:])
        has = {name: str(value) for name, value in has.items()}
    assert found.items() >= has.items()
    assert not set(lacks) & set(found)

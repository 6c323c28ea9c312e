"""An engine that goes away on command, in the middle of a batch: it costs nothing but time."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lowtide.core.fault_plans import parse_faults
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from tests.e2e.conftest import StackFactory

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulated-engine.md"
REQUESTS = 4000
SETTLED_SECONDS = 4.0
"""Longest time from an outcome to its row, on a busy machine."""


def command() -> dict[str, str]:
    """Return the settings that the page's command starts a stack with."""
    [line] = re.findall(r"^(LOWTIDE_.* make up)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(word.split("=", 1) for word in shlex.split(line) if "=" in word)


def test_the_command_of_the_page_fails_no_request(make_stack: StackFactory) -> None:
    settings = command()
    stack = make_stack(settings | {"LOWTIDE_WORKER_POLL_CAP": "1"})
    source = chat_file(REQUESTS)
    batch = stack.submit(stack.upload(source))
    ended = stack.finish(batch, source, answers=simulated_answer, within=280)
    assert ended["request_counts"] == {"total": REQUESTS, "completed": REQUESTS, "failed": 0}

    [fault] = parse_faults(settings["LOWTIDE_SIMULATED_FAULTS"])
    [(seconds, within)] = stack.query(
        """
        SELECT max(extract(epoch FROM finished_at)) - min(extract(epoch FROM finished_at)),
          count(*) FILTER (
            WHERE mod(extract(epoch FROM finished_at), :period) BETWEEN :start AND :end
          )
        FROM results WHERE batch_id = :batch
        """,
        batch=batch.removeprefix("batch_"),
        period=fault.period,
        start=fault.start + SETTLED_SECONDS,
        end=fault.end,
    )
    assert seconds > fault.end - fault.start, "the engine went away while the batch ran"
    assert within == 0, "while it is away, nothing is answered"


def test_one_of_four_broken_workers_fails_no_request(make_stack: StackFactory) -> None:
    stack = make_stack(
        {"LOWTIDE_SIMULATED_FAULTS": "1/4:500", "LOWTIDE_SIMULATED_LATENCY": "1"}
        | {"LOWTIDE_SPOT_REPLICAS": "4", "LOWTIDE_WORKER_POLL_CAP": "1"}
    )
    source = chat_file(REQUESTS // 2)
    batch = stack.submit(stack.upload(source))
    [(name, reason)] = until(
        lambda: stack.query("SELECT name, engine_reason FROM workers WHERE engine_state = 'open'"),
        "the broken worker is found out",
    )
    assert "500" in reason
    first = stack.program("infer-spot-1").pid
    pids = {first, *(child.pid for child in psutil.Process(first).children(recursive=True))}
    assert int(name.rpartition("/")[2]) in pids
    ended = stack.finish(batch, source, answers=simulated_answer, within=280)
    assert ended["request_counts"]["failed"] == 0
    assert not stack.query(
        "SELECT 1 FROM workers WHERE engine_state = 'open' AND name <> :n", n=name
    )

"""Scheduled faults of the simulated engine delay a batch, and fail no request."""

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
MAX_SETTLE_SECONDS = 4.0
"""Maximum time from an outcome to its row on a busy machine."""


def page_settings() -> dict[str, str]:
    """Return the settings in the page's command."""
    [line] = re.findall(r"^(LOWTIDE_.* make up)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(word.split("=", 1) for word in shlex.split(line) if "=" in word)


def test_outage_of_documented_command_fails_no_request(make_stack: StackFactory) -> None:
    settings = page_settings()
    stack = make_stack(settings | {"LOWTIDE_WORKER_POLL_CAP": "1"})
    source = chat_file(REQUESTS)
    batch = stack.submit(stack.upload(source))
    final = stack.finish(batch, source, answers=simulated_answer, within=280)
    assert final["request_counts"] == {"total": REQUESTS, "completed": REQUESTS, "failed": 0}

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
        start=fault.start + MAX_SETTLE_SECONDS,
        end=fault.end,
    )
    assert seconds > fault.end - fault.start, "the batch ran during the outage"
    assert within == 0, "no request finishes during the outage"


def test_one_broken_worker_of_four_fails_no_request(make_stack: StackFactory) -> None:
    stack = make_stack(
        {"LOWTIDE_SIMULATED_FAULTS": "1/4:500", "LOWTIDE_SIMULATED_LATENCY": "1"}
        | {"LOWTIDE_SPOT_REPLICAS": "4", "LOWTIDE_WORKER_POLL_CAP": "1"}
    )
    source = chat_file(REQUESTS // 2)
    batch = stack.submit(stack.upload(source))
    [(name, reason)] = until(
        lambda: stack.query("SELECT name, engine_reason FROM workers WHERE engine_state = 'open'"),
        "the broken worker's breaker is open",
    )
    assert "500" in reason
    first = stack.program("infer-spot-1").pid
    pids = {first, *(child.pid for child in psutil.Process(first).children(recursive=True))}
    assert int(name.rpartition("/")[2]) in pids
    final = stack.finish(batch, source, answers=simulated_answer, within=280)
    assert final["request_counts"]["failed"] == 0
    assert not stack.query(
        "SELECT 1 FROM workers WHERE engine_state = 'open' AND name <> :n", n=name
    )

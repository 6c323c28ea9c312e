"""Worker processes start with work and stop without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from tests.e2e.stacks import LocalStack


def test_workers_start_with_work_and_scale_to_zero(stack: LocalStack) -> None:
    """Runs late in the session, so that the workers of earlier tests are idle for long already."""
    if not stack.seen_workers:
        run_work(stack)
    first = set(stack.seen_workers)
    assert len(first) > 1, "several workers start"
    until(lambda: not stack.workers(), "idle workers stop", within=150)
    until(lambda: not any(map(psutil.pid_exists, first)), "their processes exit", within=60)
    assert not stack.query("SELECT 1 FROM workers"), "stopped workers delete their rows"

    run_work(stack)
    assert stack.seen_workers > first, "new work starts new workers"


def run_work(stack: LocalStack) -> None:
    """Run a batch that keeps several workers busy."""
    source = chat_file(1500)
    stack.finish(stack.submit(stack.upload(source)), source, answers=simulated_answer)

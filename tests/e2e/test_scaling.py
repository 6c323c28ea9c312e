"""Workers are processes that come with the work and go without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from tests.e2e.stacks import LocalStack


def test_from_none_to_some_to_none(stack: LocalStack) -> None:
    """Runs late: the workers of the first tests have been idle for long by now, so it waits less."""
    if not stack.seen_workers:
        work(stack)
    first = set(stack.seen_workers)
    assert len(first) > 1, "so much work brings more than one"
    until(lambda: not stack.workers(), "workers without work end", within=150)
    until(lambda: not any(map(psutil.pid_exists, first)), "their processes end", within=60)
    assert not stack.query("SELECT 1 FROM workers"), "they said goodbye"

    work(stack)
    assert stack.seen_workers > first, "new work brings new ones"


def work(stack: LocalStack) -> None:
    """Run a batch that keeps several workers busy."""
    source = chat_file(1500)
    stack.finish(stack.submit(stack.upload(source)), source, answers=simulated_answer)

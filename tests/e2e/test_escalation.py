"""A deadline that spot would miss is met on dedicated."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.stacks import LocalStack


@pytest.fixture
def freeze_spot(unusual: LocalStack) -> Iterator[Callable[[], None]]:
    """Stop every spot worker there is at a call; they go on after the test."""
    frozen: set[int] = set()

    def freeze() -> None:
        for worker in unusual.workers("spot"):
            if worker.pid is not None and worker.pid not in frozen:
                frozen.add(worker.pid)
                os.killpg(worker.pid, signal.SIGSTOP)

    yield freeze
    for pid in frozen:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGCONT)


def test_lines_that_spot_leaves_lying_move_to_dedicated(
    unusual: LocalStack, freeze_spot: Callable[[], None]
) -> None:
    source = chat_file(30)
    batch = unusual.client.batches.create(
        input_file_id=unusual.upload(source),
        endpoint="/v1/chat/completions",
        completion_window="1m",  # type: ignore[arg-type]
    ).id

    def is_over() -> bool:
        freeze_spot()
        return unusual.batch(batch)["completed_at"] is not None

    until(is_over, "dedicated workers do it", within=90)
    ended = unusual.finish(batch, source, answers=simulated_answer)
    assert ended["x_lowtide"]["pools"]["dedicated"] > 0
    assert ended["x_lowtide"]["escalations"] >= ended["x_lowtide"]["pools"]["dedicated"]
    assert ended["x_lowtide"]["sla_state"] == "Met"

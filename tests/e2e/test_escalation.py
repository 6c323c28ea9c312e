"""The dedicated pool meets a deadline that spot would miss."""

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
def freeze_spot(anonymous_stack: LocalStack) -> Iterator[Callable[[], None]]:
    """Freeze all current spot workers per call; resume them after the test."""
    frozen: set[int] = set()

    def freeze() -> None:
        for worker in anonymous_stack.workers("spot"):
            if worker.pid is not None and worker.pid not in frozen:
                frozen.add(worker.pid)
                os.killpg(worker.pid, signal.SIGSTOP)

    yield freeze
    for pid in frozen:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGCONT)


def test_stalled_spot_requests_escalate_to_dedicated(
    anonymous_stack: LocalStack, freeze_spot: Callable[[], None]
) -> None:
    source = chat_file(30)
    batch = anonymous_stack.client.batches.create(
        input_file_id=anonymous_stack.upload(source),
        endpoint="/v1/chat/completions",
        completion_window="1m",  # type: ignore[arg-type]
    ).id

    def is_over() -> bool:
        freeze_spot()
        return anonymous_stack.batch(batch)["completed_at"] is not None

    until(is_over, "dedicated workers finish the batch", within=90)
    final = anonymous_stack.finish(batch, source, answers=simulated_answer)
    assert final["x_lowtide"]["pools"]["dedicated"] > 0
    assert final["x_lowtide"]["escalations"] >= final["x_lowtide"]["pools"]["dedicated"]
    assert final["x_lowtide"]["sla_state"] == "Met"

"""A pull loop that is stopped before its worker starts never runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.worker.loop import PullLoop

if TYPE_CHECKING:
    from collections.abc import Callable


class _Worker:
    """A worker that records whether it ran, and calls `on_created` while it is created."""

    def __init__(self, on_created: Callable[[], None]) -> None:
        self.ran = self.stopped = False
        on_created()

    async def run(self) -> None:
        self.ran = True

    def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize(
    ("when", "runs"), [("before", False), ("meanwhile", False), ("never", True)]
)
def test_worker_runs_unless_stopped_before_start(when: str, runs: bool) -> None:
    built: list[_Worker] = []

    def build() -> _Worker:
        built.append(_Worker(loop.begin_stop if when == "meanwhile" else lambda: None))
        return built[-1]

    loop = PullLoop(build)  # type: ignore[arg-type]
    if when == "before":
        loop.begin_stop()
    loop.start()
    loop.join()
    assert [worker.ran for worker in built] == ([] if when == "before" else [runs])

"""A stack that stops during a batch continues it after the next `up`."""

from __future__ import annotations

import signal
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.e2e.command import LOWTIDE, clean_environment
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.stacks import new_stack
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.stacks import LocalStack

SETTINGS = {"LOWTIDE_SIMULATED_LATENCY": "0.3", "LOWTIDE_LEASE_DURATION": "3"}
REQUESTS = 2500


@pytest.fixture(scope="module")
def stoppable() -> Iterator[LocalStack]:
    """A stack started in the foreground, like in a terminal."""
    stack = new_stack(SETTINGS)
    with (stack.data_dir / "lowtide.log").open("w") as terminal:
        foreground = subprocess.Popen(
            [LOWTIDE, "up", *stack.arguments],
            env=clean_environment(SETTINGS),
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=subprocess.STDOUT,
        )
        try:
            until(lambda: foreground.poll() is not None or stack.is_ready(), "the stack is up")
            yield stack
        finally:
            stack.discard()
            foreground.wait(60)


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs and is no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def interrupt(supervisor: psutil.Process, stack: LocalStack) -> None:
    """Send SIGINT, like Ctrl-C."""
    del stack
    supervisor.send_signal(signal.SIGINT)


def take_down(supervisor: psutil.Process, stack: LocalStack) -> None:
    """Run `lowtide down`."""
    del supervisor
    stack.down()


def kill(supervisor: psutil.Process, stack: LocalStack) -> None:
    """SIGKILL the supervisor."""
    del stack
    supervisor.kill()


@pytest.mark.parametrize(
    "end", [interrupt, take_down, kill], ids=["Ctrl-C", "lowtide down", "kill -9"]
)
def test_batch_continues_after_restart(
    stoppable: LocalStack, end: Callable[[psutil.Process, LocalStack], None]
) -> None:
    source = chat_file(REQUESTS)
    batch = stoppable.submit(stoppable.upload(source))
    id_ = batch.removeprefix("batch_")
    until(
        lambda: stoppable.query("SELECT 1 FROM results WHERE batch_id = :batch", batch=id_),
        "the first request has a result",
    )

    supervisor = stoppable.supervisor
    family = [supervisor, *supervisor.children(recursive=True)]
    end(supervisor, stoppable)
    until(lambda: not any(map(is_alive, family)), "every process has stopped")
    stopped_at = datetime.now(UTC)
    stoppable.forget_connections()
    stoppable.up()

    def finished_before_stop() -> int:
        (row,) = stoppable.query(
            "SELECT count(*) FROM results WHERE batch_id = :batch AND finished_at <= :ended",
            batch=id_,
            ended=stopped_at,
        )
        finished: int = row[0]
        return finished

    finished = finished_before_stop()
    assert 0 < finished < REQUESTS
    stoppable.finish(batch, source, answers=simulated_answer)
    assert finished_before_stop() == finished, "finished requests do not run again"

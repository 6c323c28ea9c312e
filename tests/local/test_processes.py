from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lowtide.local.processes import Launch, Log, Process, State

if TYPE_CHECKING:
    from collections.abc import Callable

SLEEPING = "import time; print('up', flush=True); time.sleep(60)"
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPING
LEAVES_CHILD = (
    "import subprocess; child = subprocess.Popen(['sleep', '300'], start_new_session=True); "
    "print('child', child.pid, flush=True); " + SLEEPING
)
CRASHING = "import sys; sys.exit(3)"


async def _ready() -> bool:
    return True


def launching(code: str) -> Callable[[], Launch]:
    return lambda: Launch(
        command=(sys.executable, "-c", code),
        environment={**os.environ},
        folder=Path.cwd(),
        ready=_ready,
    )


async def until(condition: Callable[[], object], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def run(scenario: Callable[[Log], object], log: Path) -> str:
    with log.open("wb") as file:
        asyncio.run(scenario(Log(file.fileno())))  # type: ignore[arg-type]
    return log.read_text()


def test_killed_process_restarts_and_stops_on_request(tmp_path: Path) -> None:
    async def scenario(log: Log) -> None:
        process = Process("one", launching(SLEEPING), log)
        process.start()
        await until(lambda: process.state is State.READY)
        first = process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: process.restarts == 1 and process.state is State.READY)
        second = process.pid
        assert second not in (None, first)
        await process.stop()
        assert process.state is State.STOPPED
        assert not psutil.pid_exists(second or 0)

    text = run(scenario, tmp_path / "log")
    assert "one          | killed by SIGKILL: restarting in 0.2 s\n" in text


def test_killed_process_restarts_while_orphan_keeps_its_output_open(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"

    def children() -> list[int]:
        words = [line.split() for line in path.read_text().splitlines()]
        return [int(line[-1]) for line in words if line[-2] == "child"]

    async def scenario(log: Log) -> None:
        process = Process("one", launching(LEAVES_CHILD), log)
        process.start()
        await until(children)
        os.kill(process.pid or 0, signal.SIGKILL)
        await until(lambda: len(children()) == 2)
        assert psutil.pid_exists(children()[0])
        await process.stop()

    try:
        run(scenario, path)
    finally:
        for child in children():
            os.kill(child, signal.SIGKILL)


def test_crashing_process_restarts_with_growing_waits(tmp_path: Path) -> None:
    async def scenario(log: Log) -> None:
        process = Process("one", launching(CRASHING), log)
        process.start()
        await until(lambda: process.restarts >= 3)
        await process.stop()

    text = run(scenario, tmp_path / "log")
    for wait in ("0.2", "0.4", "0.8"):
        assert f"exited with 3: restarting in {wait} s" in text


def test_process_that_ignores_sigterm_is_killed_after_grace(tmp_path: Path) -> None:
    async def scenario(log: Log) -> None:
        process = Process("one", launching(IGNORES_SIGTERM), log, grace=0.3)
        process.start()
        await until(lambda: b"up" in (tmp_path / "log").read_bytes())
        began = time.monotonic()
        await process.stop()
        assert 0.3 <= time.monotonic() - began < 3
        assert process.pid is None

    assert "still running after 0.3 s: killed" in run(scenario, tmp_path / "log")


def test_missing_command_is_logged_and_retried(tmp_path: Path) -> None:
    async def scenario(log: Log) -> None:
        process = Process(
            "one",
            lambda: Launch(
                command=("/no/such/command",),
                environment={},
                folder=Path("/no/such/folder"),
                ready=_ready,
            ),
            log,
        )
        process.start()
        await until(lambda: process.restarts >= 1)
        await process.stop()

    assert "cannot start: " in run(scenario, tmp_path / "log")


def test_process_dies_with_its_supervisor(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
from pathlib import Path
from lowtide.local.processes import Log
from lowtide.local.processes import Launch, Process

async def ready():
    return True

async def main():
    process = Process("one", lambda: Launch(command=(sys.executable, "-c", {SLEEPING!r}),
        environment=dict(os.environ), folder=Path("/"), ready=ready), Log(2))
    process.start()
    while process.pid is None:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    print(process.pid, flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    import shutil
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, cwd=tmp_path
    )
    child = int(done.stdout)
    if sys.platform == "linux" and shutil.which("setpriv"):
        deadline = time.monotonic() + 5
        while psutil.pid_exists(child) and time.monotonic() < deadline:
            if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.02)
        assert not psutil.pid_exists(child) or (
            psutil.Process(child).status() == psutil.STATUS_ZOMBIE
        )
    else:
        os.kill(child, signal.SIGKILL)

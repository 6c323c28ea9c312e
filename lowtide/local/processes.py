"""Supervised processes and their log."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
import zlib
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import psutil

from lowtide.core.redaction import masked, printable
from lowtide.local.state import ProcessStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from lowtide.local.environment import Credentials


_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_LONGEST = 65_536  # a longer line is broken, so that memory stays bounded


class Log:
    """A log of prefixed lines on a file descriptor; `coloured` for a terminal."""

    def __init__(self, descriptor: int, *, coloured: bool = False) -> None:
        self._descriptor = descriptor
        self._coloured = coloured
        self._width = 12

    def line(self, name: str, text: str) -> None:
        """Write one line in one system call, secrets masked; ignores a closed terminal."""
        self._write(name, masked(text))

    def secret(self, name: str, text: str, *, elsewhere: str) -> None:
        """Write a line with a secret to a terminal, and `elsewhere` instead to a file."""
        self._write(name, text if os.isatty(self._descriptor) else elsewhere)

    def _write(self, name: str, text: str) -> None:
        self._width = max(self._width, len(name))
        prefix = f"{name:<{self._width}} |"
        if self._coloured:
            colour = _COLOURS[zlib.crc32(name.encode()) % len(_COLOURS)]
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        data = f"{prefix} {printable(text)}\n".encode(errors="replace")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            # The stack must outlive the terminal or pipe that it logs to.
            return

    async def follow(self, name: str, output: asyncio.StreamReader) -> None:
        """Write the output of a process until it is closed."""
        remainder = b""
        while chunk := await output.read(_LONGEST):
            *lines, remainder = (remainder + chunk).split(b"\n")
            if len(remainder) > _LONGEST:
                lines.append(remainder)
                remainder = b""
            for line in lines:
                self._show(name, line)
        if remainder:
            self._show(name, remainder)

    def _show(self, name: str, line: bytes) -> None:
        if text := line.decode(errors="replace").rstrip(" \t\r"):
            self.line(name, text)


FIRST_BACKOFF = 0.2
LONGEST_BACKOFF = 5.0
STABLE_AFTER = 10.0
_PROBE_INTERVAL = 0.05
_PRIVATE = 0o077  # umask: only the user of a process can read its files


class State(StrEnum):
    """The state of a process."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


async def _at_once() -> None:
    """Wait for nothing."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a process; each start may choose new ports.

    `before` is awaited before the command starts, `after` runs once it has ended or failed to start.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    ready: Callable[[], Awaitable[bool]]
    port: int | None = None
    health_port: int | None = None
    credentials: Credentials | None = None
    before: Callable[[], Awaitable[None]] = _at_once
    after: Callable[[], None] = lambda: None


class Process:
    """A command that is restarted until it is stopped.

    `plan` makes each launch; `changed` is called after every change of state. The child leads its
    own session, so that Ctrl-C reaches only the supervisor and the whole group can be killed.
    """

    def __init__(
        self,
        name: str,
        plan: Callable[[], Launch],
        log: Log,
        *,
        changed: Callable[[], None] = lambda: None,
        grace: float = 10.0,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.grace = grace
        self.restarts = 0
        self.state = State.STARTING
        self.launch: Launch | None = None
        self.pid: int | None = None
        self._created = 0.0
        self._plan = plan
        self._log = log
        self._changed = changed
        self._stop_signal = stop_signal
        self.is_ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the command, and keep it running in the background."""
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self, grace: float | None = None) -> None:
        """Signal the process to end and wait; kill it after `grace` seconds."""
        self._stop.set()
        if self._task is not None:
            limit = self.grace if grace is None else min(grace, self.grace)
            done, _ = await asyncio.wait([self._task], timeout=limit)
            if not done:
                self._log.line(self.name, f"still running after {limit:g} s: killed")
                self.kill()
                await self._task
        self._set_state(State.STOPPED)

    def kill(self) -> None:
        """Kill the whole process group; the process restarts unless `stop` was called."""
        if self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def status(self) -> ProcessStatus:
        """Return the entry of this process in the state file."""
        return ProcessStatus(
            name=self.name,
            pid=self.pid,
            created=self._created,
            port=self.launch.port if self.launch else None,
            health_port=self.launch.health_port if self.launch else None,
            state=str(self.state),
            restarts=self.restarts,
        )

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                code = await self._run_once()
            except OSError as error:
                code = None
                self._log.line(self.name, f"cannot start: {error}")
            if self._stop.is_set():
                break
            if time.monotonic() - began >= STABLE_AFTER:
                backoff = FIRST_BACKOFF
            self.restarts += 1
            self._set_state(State.RESTARTING)
            self._log.line(self.name, f"{_exit_text(code)}: restarting in {backoff:g} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF)

    async def _run_once(self) -> int:
        launch = self.launch = self._plan()
        try:
            if not await self._may_start(launch):
                return 0
            return await self._supervise(launch)
        finally:
            launch.after()

    async def _may_start(self, launch: Launch) -> bool:
        """Wait for `launch.before`; return False if the process is stopped meanwhile."""
        before = asyncio.ensure_future(launch.before())
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait([before, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if self._stop.is_set():
            before.cancel()
            return False
        await before
        return True

    async def _supervise(self, launch: Launch) -> int:
        async with _pipe() as (reader, write_end):
            try:
                child = await asyncio.create_subprocess_exec(
                    *_with_parent_death_signal(launch.command, self._stop_signal),
                    env=dict(launch.environment),
                    cwd=launch.folder,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                    umask=_PRIVATE,
                    **(launch.credentials or {}),
                )
            finally:
                os.close(write_end)
            return await self._watch(child, launch, reader)

    async def _watch(
        self, child: asyncio.subprocess.Process, launch: Launch, reader: asyncio.StreamReader
    ) -> int:
        self.pid = child.pid
        with suppress(psutil.Error):
            self._created = psutil.Process(child.pid).create_time()
        self._set_state(State.STARTING)
        helpers = [
            asyncio.create_task(self._probe(launch)),
            asyncio.create_task(self._end_when_stopped(child)),
        ]
        output = asyncio.create_task(self._log.follow(self.name, reader))
        try:
            code = await child.wait()
        finally:
            for helper in helpers:
                helper.cancel()
            # A killed parent's own children live on, and keep ports and pipes open.
            self.kill()
            self.pid = None
        await asyncio.gather(*helpers, return_exceptions=True)
        await asyncio.wait([output], timeout=1)
        output.cancel()
        return code

    async def _probe(self, launch: Launch) -> None:
        while True:
            if await launch.ready():
                break
            await asyncio.sleep(_PROBE_INTERVAL)
        if not self._stop.is_set():
            self._set_state(State.READY)

    async def _end_when_stopped(self, child: asyncio.subprocess.Process) -> None:
        await self._stop.wait()
        self._set_state(State.STOPPING)
        with suppress(ProcessLookupError):
            child.send_signal(self._stop_signal)

    def _set_state(self, state: State) -> None:
        self.state = state
        if state is State.READY:
            self.is_ready.set()
        else:
            self.is_ready.clear()
        self._changed()


@asynccontextmanager
async def _pipe() -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """Yield the reader of a pipe and its write end; the caller closes the write end.

    With asyncio's own pipe, `wait` of a process waits for every process that has the pipe open,
    such as a PostgreSQL backend that outlives a killed postmaster.
    """
    read_end, write_end = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", 0)
    )
    try:
        yield reader, write_end
    finally:
        transport.close()


def _with_parent_death_signal(
    command: tuple[str, ...], stop_signal: signal.Signals
) -> tuple[str, ...]:
    # With setpriv, the kernel signals the child if the supervisor is killed.
    if sys.platform == "linux" and (setpriv := shutil.which("setpriv")):
        return (setpriv, "--pdeathsig", stop_signal.name.removeprefix("SIG"), "--", *command)
    return command


def _exit_text(code: int | None) -> str:
    if code is None:
        return "not started"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exited with {code}"

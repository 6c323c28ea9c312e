"""Start, stop and status of the stack, as in `lowtide up`, `down` and `status`.

Example:
    status = up_detached(Options(port=8080))
    print(status.base_url, status.api_key)
    down(Path(status.data_dir))
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

from lowtide.local import files, state
from lowtide.local.cells import LocalCells, check_cells
from lowtide.local.environment import check_user
from lowtide.local.monitoring import check_programs
from lowtide.local.options import AlreadyRunning, ForeignFolder, Options, StartFailed
from lowtide.local.ports import hold_port, require_free
from lowtide.local.processes import Log
from lowtide.local.stack import Stack
from lowtide.local.state import Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


__all__ = ["Options", "Status", "down", "status", "up", "up_detached"]

LOG_NAME = "lowtide.log"
_LOCK = "lock"
_LARGEST_LOG = 20_000_000
_TAIL = 4_000
_POLL = 0.05

# The supervisors that this process started, by data directory. Each must be waited for: Python
# warns about a child that is collected earlier, and an ended child stays a zombie.
_daemons: dict[Path, subprocess.Popen[bytes]] = {}


def up(options: Options) -> None:
    """Run the stack in the foreground until SIGINT or SIGTERM, then stop it cleanly.

    A second signal kills at once. Raises AlreadyRunning, PortInUse, BadManifest or StartFailed.
    """
    check_user(os.environ)
    data_dir = _prepare_data_dir(options)
    with _locked(data_dir), _log(options, data_dir) as log:
        for name in state.reap(data_dir):
            log.line("lowtide", f"ended {name}, left over from an earlier run")
        _require_free_ports(options)
        hold_port(options.port)
        if not options.cells:
            hold_port(options.portal)
        asyncio.run(_run(options, log))


def up_detached(options: Options) -> Status:
    """Start the stack as a daemon and return once it is ready.

    Its log is `lowtide.log` in the data directory. Raises AlreadyRunning, PortInUse or, with the
    end of the log, StartFailed.
    """
    data_dir = _prepare_data_dir(options)
    if running := status(data_dir):
        raise _already_running(data_dir, running.pid)
    check_user(os.environ)
    if options.monitoring:
        check_programs(options)
    # Processes of a killed supervisor may still listen on the port.
    state.reap(data_dir)
    _wait_for_daemon(data_dir, options.start_timeout)
    _require_free_ports(options)
    log = _rotate(data_dir / LOG_NAME)
    log_start = log.stat().st_size
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603 - our own interpreter
            options.command(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _daemons[data_dir] = child
    deadline = time.monotonic() + options.start_timeout + 10
    while time.monotonic() < deadline and child.poll() is None:
        current = status(data_dir)
        if current is not None and current.ready and current.pid == child.pid:
            return current
        time.sleep(_POLL)
    child.terminate()
    _wait_for_daemon(data_dir, options.start_timeout)
    raise StartFailed(f"The stack did not start. End of {log}:\n{_log_tail(log, log_start)}")


def _require_free_ports(options: Options) -> None:
    cells = [options.of_cell(number) for number in range(1, options.cells + 1)]
    for port in (options.port, *(cell.port for cell in cells)):
        require_free(port, "choose another: PORT=8090 make up")
    for port in [cell.portal for cell in cells] or [options.portal]:
        require_free(port, "choose another: PORTAL_PORT=8100 make up")


def down(data_dir: Path, timeout: float = 45.0) -> bool:
    """Stop the stack of `data_dir` gracefully; kill it after `timeout` seconds.

    Return True if anything was running.
    """
    last = state.read(data_dir)
    if last is None:
        _wait_for_daemon(data_dir, timeout)
        return False
    process = state.supervisor(last)
    if process is not None:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while state.supervisor(last) is not None and time.monotonic() < deadline:
            time.sleep(_POLL)
        if state.supervisor(last) is not None:
            with suppress(psutil.Error):
                process.kill()
    _wait_for_daemon(data_dir, timeout)
    leftovers = state.reap(data_dir)
    state.forget(data_dir)
    return process is not None or bool(leftovers)


def _wait_for_daemon(data_dir: Path, timeout: float) -> None:
    """Wait for the ending supervisor of `data_dir`, if this process started it."""
    if child := _daemons.pop(data_dir.resolve(), None):
        child.wait(timeout)


def status(data_dir: Path) -> Status | None:
    """Return the running stack of `data_dir`; None if there is none."""
    last = state.read(data_dir)
    return last if last is not None and state.supervisor(last) is not None else None


async def _run(options: Options, log: Log) -> None:
    stack = LocalCells(options, log) if options.cells else Stack(options, log)
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            log.line("lowtide", "killing all processes")
            stack.kill()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    start_task = asyncio.create_task(stack.start())
    stop_task = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([start_task, stop_task], return_when=asyncio.FIRST_COMPLETED)
        if start_task.done():
            start_task.result()
            _announce(stack.status(), log)
            await stop_task
        else:
            start_task.cancel()
    finally:
        await stack.stop()


def _announce(ready: Status, log: Log) -> None:
    for text, secret in (
        (f"ready: {ready.base_url}/v1", f"key {ready.api_key}"),
        (f"portal: {ready.portal_url}", f"password {ready.portal_password}"),
    ):
        hint = f"{secret.split()[0]}: see lowtide status"
        log.secret("lowtide", f"{text}  {secret}", elsewhere=f"{text}  {hint}")
    if ready.prometheus_url:
        log.line("lowtide", f"alerts: {ready.alertmanager_url}  metrics: {ready.prometheus_url}")
    if ready.notice:
        log.line("lowtide", f"workers: {ready.notice}")
    log.line("lowtide", "stop with Ctrl-C or `lowtide down`")


def _prepare_data_dir(options: Options) -> Path:
    """Create the data directory; raises ForeignFolder or OtherCells if it is for something else.

    An existing directory keeps its mode, as everything inside is private.
    """
    data_dir = options.data_dir
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    entries = {entry.name for entry in data_dir.iterdir()} - {"lost+found"}
    if entries - {LOG_NAME} and not entries & {_LOCK, files.NAME}:
        raise ForeignFolder(
            f"{data_dir} has other files, such as {min(entries)}: choose an empty or new directory: "
            "DATA_DIR=… make up"
        )
    check_cells(data_dir, options.cells)
    (data_dir / _LOCK).touch(mode=0o600)
    if not options.cells:
        objects = data_dir / "objects"
        objects.mkdir(exist_ok=True)
        objects.chmod(0o700)
    return data_dir.resolve()


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    with (data_dir / _LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise _already_running(data_dir, lock.read().strip() or "unknown") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _already_running(data_dir: Path, pid: int | str) -> AlreadyRunning:
    return AlreadyRunning(
        f"A stack is already running in {data_dir} (pid {pid}): stop it with `lowtide down`, "
        "or choose another data directory: DATA_DIR=… make up"
    )


@contextmanager
def _log(options: Options, data_dir: Path) -> Iterator[Log]:
    if not options.quiet:
        yield Log(1, coloured=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
        return
    with _rotate(data_dir / LOG_NAME).open("ab", buffering=0) as file:
        yield Log(file.fileno())


def _rotate(log: Path) -> Path:
    if log.exists() and log.stat().st_size > _LARGEST_LOG:
        log.replace(log.with_suffix(".log.1"))
    log.touch(mode=0o600)  # private, like every file of the data directory
    return log


def _log_tail(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _TAIL))
        return file.read().decode(errors="replace")

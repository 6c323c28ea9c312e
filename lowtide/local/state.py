"""The state file of the running processes, which outlives the supervisor."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec
import psutil

from lowtide.local import files
from lowtide.local.files import write_atomically

STATE = "state.json"
POSTGRES = "postgres"
BROKER = "broker"


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process; `created`, its start in Unix seconds, distinguishes it from a reused pid."""

    name: str
    pid: int | None
    created: float
    port: int | None
    health_port: int | None
    state: str
    restarts: int

    def running(self) -> psutil.Process | None:
        """Return the live process; None if it ended or its pid was reused."""
        return _same(self.pid, self.created)


class CellStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One of the cells of a stack; `process` is its supervisor's, with the name of the cell."""

    number: int
    region: str
    base_url: str
    portal_url: str
    data_dir: str
    process: ProcessStatus


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A whole stack; `api_key` is the default tenant's, `portal_password` the operator's.

    `notice` is a remark for the user, if any. The URLs of Prometheus and Alertmanager are empty
    without monitoring. A stack of `cells` runs their supervisors and the front itself; its portal is
    that of the first cell.
    """

    base_url: str
    portal_url: str
    data_dir: str
    pid: int
    created: float
    ready: bool
    processes: list[ProcessStatus]
    api_key: str = ""
    portal_password: str = ""
    notice: str = ""
    prometheus_url: str = ""
    alertmanager_url: str = ""
    cells: list[CellStatus] = []

    def to_json(self) -> str:
        """Return the status as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self)).decode()

    def to_dict(self) -> dict[str, object]:
        """Return the status as built-in types."""
        return cast("dict[str, object]", msgspec.to_builtins(self))


def write(data_dir: Path, status: Status) -> None:
    """Replace the state file; omits the secrets."""
    content = msgspec.json.encode(msgspec.structs.replace(status, api_key="", portal_password=""))
    write_atomically(data_dir / STATE, content, mode=0o600)


def read(data_dir: Path) -> Status | None:
    """Return the last state written, even of a stopped stack; None if there is none."""
    path = data_dir / STATE
    try:
        status = msgspec.json.decode(path.read_bytes(), type=Status)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    secrets = files.read(data_dir)
    if secrets is None:
        return msgspec.structs.replace(status, api_key="", portal_password="")
    return msgspec.structs.replace(
        status, api_key=secrets.api_key, portal_password=secrets.portal_password
    )


def forget(data_dir: Path) -> None:
    """Remove the state file after a clean stop."""
    (data_dir / STATE).unlink(missing_ok=True)


def supervisor(status: Status) -> psutil.Process | None:
    """Return the supervisor if it is alive."""
    return _same(status.pid, status.created)


def reap(data_dir: Path, grace: float = 5.0) -> list[str]:
    """End the processes that a killed supervisor left running; return their names.

    PostgreSQL ends last, so that workers can release their requests.
    """
    status = read(data_dir)
    if status is None:
        return []
    names: list[str] = []
    for group in (
        [process for process in status.processes if process.name != POSTGRES],
        [process for process in status.processes if process.name == POSTGRES],
    ):
        names += _end(group, written=(data_dir / STATE).stat().st_mtime, grace=grace)
    for cell in status.cells:
        names += reap(Path(cell.data_dir), grace)
    return names


def _end(recorded: list[ProcessStatus], *, written: float, grace: float) -> list[str]:
    alive = {process.name: live for process in recorded if (live := process.running())}
    for name, process in alive.items():
        with suppress(psutil.Error):
            process.send_signal(signal.SIGINT if name == POSTGRES else signal.SIGTERM)
    psutil.wait_procs(list(alive.values()), timeout=grace)
    for status in recorded:
        if status.pid is not None:
            _kill_group(status.pid, written)
    psutil.wait_procs(list(alive.values()), timeout=grace)
    return list(alive)


def _kill_group(leader: int, written: float) -> None:
    """Kill the members of the group that existed when the state was written, and no others."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == leader and process.create_time() <= written + 1:
                process.kill()


def _same(pid: int | None, created: float) -> psutil.Process | None:
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created) > 0.5 or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.Error:
        return None
    return process

"""Several cells on one machine: each a whole stack with a supervisor of its own, behind one front."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import psutil
import yaml

from lowtide.local import environment, files, state
from lowtide.local.fleets import FILE_VARIABLE, declared_fleets
from lowtide.local.options import OtherCells, StartFailed
from lowtide.local.ports import HOST, free_port
from lowtide.local.processes import Launch, Process, State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowtide.local.options import Options
    from lowtide.local.processes import Log

FILE: Final = "cells.yaml"
FRONT: Final = "front"
AWAY: Final = "away"
"""The file in the data directory of a killed cell, which does not start while it exists."""
_POLL: Final = 0.1
_MAX_CRASHES: Final = 4
_STOP_SECONDS: Final = 40.0
# Each waits for a cell with a request.
_THREADS: Final = "32"
_OBJECT_STORE: Final = "LOWTIDE_OBJECT_STORE_URL"


@dataclass(frozen=True, slots=True)
class LocalCell:
    """One cell: its name, its region and the options of its stack."""

    number: int
    options: Options

    @property
    def name(self) -> str:
        """The name of the cell."""
        return self.options.data_dir.name

    @property
    def region(self) -> str:
        """The region of the cell."""
        return f"region-{self.number}"


def cells_file(cells: Sequence[LocalCell]) -> bytes:
    """Return the file of the cells, for LOWTIDE_CELLS."""
    parts = [
        {
            "number": cell.number,
            "name": cell.name,
            "url": cell.options.base_url,
            "region": cell.region,
            "portal": cell.options.portal_url,
        }
        for cell in cells
    ]
    return yaml.safe_dump({"cells": parts}, sort_keys=False).encode()


def cell_environment(cell: LocalCell, user: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a cell: the user's, with a number and an object store of its own."""
    variables = {**user, "LOWTIDE_CELL": str(cell.number)}
    if FILE_VARIABLE in variables:
        # Cells run in another directory.
        variables[FILE_VARIABLE] = str(Path(variables[FILE_VARIABLE]).resolve())
    if _OBJECT_STORE in variables:
        variables[_OBJECT_STORE] = f"{variables[_OBJECT_STORE].rstrip('/')}/{cell.name}"
    return variables


class LocalCells:
    """All cells and the front; call `start`, then `stop`. `kill` ends every process at once."""

    def __init__(self, options: Options, log: Log) -> None:
        self._options = options
        self._log = log
        self._secrets = files.read_or_create(options.data_dir)
        self._cells = [
            LocalCell(number, options.of_cell(number)) for number in range(1, options.cells + 1)
        ]
        self._supervisors = {cell.name: self._supervisor_of(cell) for cell in self._cells}
        self._front = Process(FRONT, self._plan_front, log, changed=self._publish_state)
        self._health_port = free_port()
        self._ready = False
        self._supervisor = psutil.Process()

    async def start(self) -> None:
        """Start everything and wait until it is ready; raises StartFailed if it is not in time."""
        self._publish_state()
        for cell in self._cells:
            cell.options.data_dir.mkdir(mode=0o700, exist_ok=True)
            (cell.options.data_dir / AWAY).unlink(missing_ok=True)
            # The same key opens all cells.
            files.write(cell.options.data_dir, self._secrets)
        files.write_atomically(self._options.data_dir / FILE, cells_file(self._cells))
        for process in self._processes:
            process.start()
        await self._wait()
        self._ready = True
        self._publish_state()

    async def stop(self) -> None:
        """Stop the front, then all cells."""
        self._ready = False
        await self._front.stop()
        self._log.line("lowtide", f"stopping {len(self._cells)} cells")
        await asyncio.gather(*(process.stop() for process in self._supervisors.values()))
        state.forget(self._options.data_dir)
        self._log.line("lowtide", "stopped")

    def kill(self) -> None:
        """Kill every process at once."""
        for process in self._processes:
            if process.pid is not None:
                _kill_tree(process.pid)

    def status(self) -> state.Status:
        """Return the current status."""
        return state.Status(
            base_url=self._options.base_url,
            portal_url=self._cells[0].options.portal_url,
            data_dir=str(self._options.data_dir),
            pid=self._supervisor.pid,
            created=self._supervisor.create_time(),
            ready=self._ready,
            processes=[process.status() for process in self._processes],
            api_key=self._secrets.api_key,
            portal_password=self._secrets.portal_password,
            notice=environment.engine_notice(os.environ, declared_fleets(os.environ)),
            cells=[self._cell_status(cell) for cell in self._cells],
        )

    @property
    def _processes(self) -> list[Process]:
        return [self._front, *self._supervisors.values()]

    def _cell_status(self, cell: LocalCell) -> state.CellStatus:
        return state.CellStatus(
            number=cell.number,
            region=cell.region,
            base_url=cell.options.base_url,
            portal_url=cell.options.portal_url,
            data_dir=str(cell.options.data_dir),
            process=_with_absence(self._supervisors[cell.name].status(), cell),
        )

    def _publish_state(self) -> None:
        state.write(self._options.data_dir, self.status())

    async def _wait(self) -> None:
        deadline = time.monotonic() + self._options.start_timeout
        while pending := [each for each in self._processes if each.state is not State.READY]:
            if crashing := [each.name for each in pending if each.restarts >= _MAX_CRASHES]:
                raise StartFailed(f"{', '.join(crashing)} keeps crashing; see the log above.")
            if time.monotonic() > deadline:
                names = ", ".join(process.name for process in pending)
                raise StartFailed(f"{names}: not ready in {self._options.start_timeout:g} s.")
            await asyncio.sleep(_POLL)

    def _supervisor_of(self, cell: LocalCell) -> Process:
        process = Process(
            cell.name,
            lambda: self._plan(cell, process),
            self._log,
            changed=self._publish_state,
            grace=_STOP_SECONDS,
        )
        return process

    def _plan(self, cell: LocalCell, process: Process) -> Launch:
        options = cell.options

        async def may_start() -> None:
            while True:
                if not (options.data_dir / AWAY).exists():
                    return
                await asyncio.sleep(_POLL)

        async def ready() -> bool:
            status = await asyncio.to_thread(state.read, options.data_dir)
            return status is not None and status.ready and status.pid == process.pid

        return Launch(
            command=options.command(),
            environment={
                "LOWTIDE_API_URL": self._options.base_url,
                **cell_environment(cell, os.environ),
                **self._shared(),
            },
            folder=options.root,
            ready=ready,
            port=options.port,
            before=may_start,
        )

    def _shared(self) -> Mapping[str, str]:
        return {
            "LOWTIDE_CELLS": str(self._options.data_dir.resolve() / FILE),
            "LOWTIDE_CELLS_TOKEN": self._secrets.cells_token,
        }

    def _plan_front(self) -> Launch:
        port = self._options.port

        async def ready() -> bool:
            return await _answers(self._health_port, "/health/ready")

        return Launch(
            command=(
                *(sys.executable, "-m", "gunicorn"),
                *("-c", "python:lowtide.serving", "functions_framework:create_app()"),
            ),
            environment={
                "LOWTIDE_LOG_FORMAT": "text",
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "HOST": HOST,
                "PORT": str(port),
                "FUNCTION_SOURCE": "functions/front/main.py",
                "FUNCTION_TARGET": FRONT,
                "FUNCTION_SIGNATURE_TYPE": "http",
                "LOWTIDE_HEALTH_PORT": str(self._health_port),
                "THREADS": _THREADS,
                **self._shared(),
            },
            folder=self._options.root,
            ready=ready,
            port=port,
            health_port=self._health_port,
        )


def _with_absence(status: state.ProcessStatus, cell: LocalCell) -> state.ProcessStatus:
    if (cell.options.data_dir / AWAY).exists():
        return msgspec.structs.replace(status, state=AWAY)
    return status


async def _answers(port: int, path: str) -> bool:
    """Return whether a process answers 200 on its health port."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(HOST, port), 2)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
        line = await asyncio.wait_for(reader.readline(), 2)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return b" 200 " in line


def check_cells(data_dir: Path, cells: int) -> None:
    """Raise OtherCells if a data directory belongs to one stack, or to more cells."""
    numbers = [path.name.removeprefix("cell-") for path in data_dir.glob("cell-*/")]
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    if cells and (data_dir / "postgres").exists():
        raise OtherCells(
            f"{data_dir} holds a stack without cells: choose another directory: DATA_DIR=… make up"
        )
    if last > cells:
        raise OtherCells(
            f"{data_dir} holds cell-{last}: start it with --cells {last}, or choose another directory: "
            "DATA_DIR=… make up"
        )


def kill_cell(cell: state.CellStatus) -> None:
    """Kill all processes of a cell at once; it stays away until `start_cell`."""
    (Path(cell.data_dir) / AWAY).touch(mode=0o600)
    if live := cell.process.running():
        _kill_tree(live.pid)


def start_cell(cell: state.CellStatus) -> None:
    """Let a killed cell start again."""
    (Path(cell.data_dir) / AWAY).unlink(missing_ok=True)


def _kill_tree(pid: int) -> None:
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        # It starts nothing from now on.
        root.suspend()
        for process in [*root.children(recursive=True), root]:
            with suppress(psutil.Error):
                process.kill()

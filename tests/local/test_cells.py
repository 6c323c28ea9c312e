"""Cells on one machine: their options, their environments and the data directories that they take."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest

from lowtide.cells.model import Cell
from lowtide.cells.parsing import parse
from lowtide.local import files, state
from lowtide.local.cells import (
    AWAY,
    LocalCell,
    cell_environment,
    cells_file,
    kill_cell,
    start_cell,
)
from lowtide.local.options import Options, OtherCells, PortInUse
from lowtide.local.ports import HOST, free_port, release_ports
from lowtide.local.processes import Log, Process, State
from lowtide.local.runtime import up_detached

from .conftest import is_reserved
from .test_processes import LEAVES_CHILD, SLEEPING, launching, run, until
from .test_state import is_gone

if TYPE_CHECKING:
    from pathlib import Path


def test_each_cell_has_its_ports_and_directory(tmp_path: Path) -> None:
    options = Options(data_dir=tmp_path, port=9000, portal_port=9100, cells=3, ready_timeout=10)
    second = options.of_cell(2)
    assert (second.port, second.portal, second.cells) == (9002, 9102, 0)
    assert second.data_dir == tmp_path / "cell-2"
    assert second.start_timeout == options.start_timeout == 30
    assert second.command()[-2:] == ("--cells", "0")


@pytest.mark.parametrize(
    ("existing", "cells", "message"),
    [
        ("postgres", 3, "holds a stack without cells"),
        ("cell-3", 2, "holds cell-3: start it with --cells 3"),
        ("cell-1", 0, "holds cell-1: start it with --cells 1"),
    ],
)
def test_directory_of_other_cells_is_refused(
    tmp_path: Path, existing: str, cells: int, message: str
) -> None:
    files.read_or_create(tmp_path)
    (tmp_path / existing).mkdir()
    with pytest.raises(OtherCells, match=message):
        up_detached(Options(data_dir=tmp_path, port=1, cells=cells))


def test_port_of_a_cell_in_use_is_named(tmp_path: Path) -> None:
    port = free_port(following=2)
    with socket.create_server((HOST, port + 2)), pytest.raises(PortInUse) as refused:
        up_detached(Options(data_dir=tmp_path, port=port, portal_port=free_port(), cells=2))
    assert f"Port {port + 2} is in use" in str(refused.value)


def test_following_ports_are_reserved() -> None:
    port = free_port(following=2)
    ports = [port, port + 1, port + 2]
    assert all(map(is_reserved, ports))
    release_ports(*ports)
    assert not any(map(is_reserved, ports))


def test_file_names_all_cells(tmp_path: Path) -> None:
    options = Options(data_dir=tmp_path, port=9000, cells=2)
    cells = [LocalCell(number, options.of_cell(number)) for number in (1, 2)]
    assert parse(cells_file(cells).decode()).cells == [
        Cell(
            number,
            f"cell-{number}",
            f"http://127.0.0.1:{9000 + number}",
            f"region-{number}",
            portal=f"http://127.0.0.1:{9010 + number}",
        )
        for number in (1, 2)
    ]


def test_cells_share_no_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    user = {
        "LOWTIDE_OBJECT_STORE_URL": "s3://bucket/here/",
        "LOWTIDE_FLEETS": "fleets.yaml",
        "LOWTIDE_CELL": "7",
    }
    cell = LocalCell(2, Options(data_dir=tmp_path, cells=3).of_cell(2))
    assert cell_environment(cell, user) == {
        "LOWTIDE_OBJECT_STORE_URL": "s3://bucket/here/cell-2",
        "LOWTIDE_FLEETS": str(tmp_path / "fleets.yaml"),
        "LOWTIDE_CELL": "2",
    }
    assert cell_environment(cell, {}) == {"LOWTIDE_CELL": "2"}


def _status(data_dir: Path, process: Process) -> state.CellStatus:
    return state.CellStatus(
        number=2,
        region="region-2",
        base_url="http://127.0.0.1:1",
        portal_url="http://127.0.0.1:2",
        data_dir=str(data_dir),
        process=process.status(),
    )


def test_killed_cell_is_gone_with_its_children_until_it_is_started(tmp_path: Path) -> None:
    async def scenario(log: Log) -> None:
        async def may_start() -> None:
            await until(lambda: not (tmp_path / AWAY).exists())

        process = Process(
            "cell-2", lambda: replace(launching(LEAVES_CHILD)(), before=may_start), log
        )
        process.start()
        await until(lambda: process.state is State.READY and _children(process))
        family = [psutil.Process(process.pid), *_children(process)]
        kill_cell(_status(tmp_path, process))
        await until(lambda: process.state is State.RESTARTING)
        assert all(map(is_gone, family))
        # Longer than the pause before a restart.
        await asyncio.sleep(0.5)
        assert process.pid is None
        start_cell(_status(tmp_path, process))
        await until(lambda: process.state is State.READY)
        await process.stop()

    run(scenario, tmp_path / "log")


def _children(process: Process) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_process_that_may_not_start_is_stopped_at_once(tmp_path: Path) -> None:
    async def scenario(log: Log) -> None:
        never = asyncio.Event()

        async def may_start() -> None:
            await never.wait()

        process = Process("one", lambda: replace(launching(SLEEPING)(), before=may_start), log)
        process.start()
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await process.stop()
        assert (process.state, process.restarts) == (State.STOPPED, 0)

    assert run(scenario, tmp_path / "log") == ""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import psutil
import pytest

from lowtide.local import state
from lowtide.local.files import read_or_create
from lowtide.local.runtime import down, status

from .conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A parent with a child process, like gunicorn.
FAMILY = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
import time; time.sleep(60)
"""


@pytest.fixture
def family() -> Iterator[tuple[psutil.Process, psutil.Process]]:
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        yield psutil.Process(parent.pid), child
        for process in (parent, child):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def record(data_dir: Path, process: psutil.Process, *, created: float | None = None) -> None:
    one = state.ProcessStatus(
        name="read",
        pid=process.pid,
        created=process.create_time() if created is None else created,
        port=1,
        health_port=2,
        state="ready",
        restarts=0,
    )
    dead_supervisor = 0.0
    state.write(
        data_dir,
        state.Status(
            base_url="http://127.0.0.1:1",
            portal_url="http://127.0.0.1:2",
            data_dir=str(data_dir),
            pid=process.pid,
            created=dead_supervisor,
            ready=True,
            processes=[one],
        ),
    )


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_orphans_and_their_children_are_killed(
    tmp_path: Path, family: tuple[psutil.Process, psutil.Process]
) -> None:
    parent, child = family
    record(tmp_path, parent)
    assert status(tmp_path) is None
    assert state.reap(tmp_path) == ["read"]
    eventually(lambda: is_gone(parent) and is_gone(child))


def test_children_of_dead_parent_are_killed(
    tmp_path: Path, family: tuple[psutil.Process, psutil.Process]
) -> None:
    parent, child = family
    record(tmp_path, parent)
    parent.kill()
    eventually(lambda: is_gone(parent))
    state.reap(tmp_path)
    eventually(lambda: is_gone(child))


def test_leftovers_of_cells_are_killed(
    tmp_path: Path, family: tuple[psutil.Process, psutil.Process]
) -> None:
    parent, child = family
    cell = tmp_path / "cell-1"
    cell.mkdir()
    record(cell, parent)
    record(tmp_path, psutil.Process(), created=0.0)
    whole = state.read(tmp_path)
    assert whole is not None
    supervisor = whole.processes[0]
    one = state.CellStatus(
        number=1, region="r", base_url="", portal_url="", data_dir=str(cell), process=supervisor
    )
    state.write(tmp_path, msgspec.structs.replace(whole, processes=[], cells=[one]))
    assert state.reap(tmp_path) == ["read"]
    eventually(lambda: is_gone(parent) and is_gone(child))


def test_process_with_reused_pid_is_not_killed(
    tmp_path: Path, family: tuple[psutil.Process, psutil.Process]
) -> None:
    parent, _ = family
    record(tmp_path, parent, created=parent.create_time() - 60)
    # The process with this pid in the state file has exited long ago.
    before = parent.create_time() - 30
    os.utime(tmp_path / state.STATE, (before, before))
    assert state.reap(tmp_path) == []
    assert not is_gone(parent)


def test_down_without_a_stack_is_false(tmp_path: Path) -> None:
    assert down(tmp_path) is False


def test_secrets_are_created_once_and_private(tmp_path: Path) -> None:
    secrets = read_or_create(tmp_path)
    assert read_or_create(tmp_path) == secrets
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert secrets.api_key.startswith("lt_")
    assert len(secrets.api_key) >= 35
    assert len(set(secrets.passwords.values())) == len(secrets.passwords) == 6

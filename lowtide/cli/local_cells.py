"""`lowtide cells kill` and `start`: the cells of a local stack."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lowtide.cli.options import DataDir
from lowtide.cli.output import fail, say
from lowtide.cli.stack import require_local, running_stack

if TYPE_CHECKING:
    from pathlib import Path

    from lowtide.local.state import CellStatus

_START_SECONDS: Final = 120.0
_POLL: Final = 0.1
Name = Annotated[str, typer.Argument(help="Name of a cell of the local stack, such as cell-2.")]


def kill(name: Name, data_dir: DataDir = None) -> None:
    """Kill all processes of a local cell at once. It stays away until `lowtide cells start`."""
    require_local()
    from lowtide.local.cells import kill_cell

    kill_cell(_cell(name, data_dir))
    say(f"Killed {name}.")


def start(name: Name, data_dir: DataDir = None) -> None:
    """Start a killed local cell, and wait until it is ready."""
    require_local()
    from lowtide.local.cells import start_cell
    from lowtide.local.processes import State

    start_cell(_cell(name, data_dir))
    deadline = time.monotonic() + _START_SECONDS
    while _cell(name, data_dir).process.state != State.READY:
        if time.monotonic() > deadline:
            fail(f"{name} is not ready after {_START_SECONDS:g} s: see lowtide.log.")
        time.sleep(_POLL)
    say(f"Started {name}.")


def _cell(name: str, data_dir: Path | None) -> CellStatus:
    by_name = {cell.process.name: cell for cell in running_stack(data_dir).cells}
    if name not in by_name:
        names = ", ".join(by_name) or "none: see lowtide up --cells"
        fail(f"The local stack has no cell {name}. Its cells are {names}.")
    return by_name[name]

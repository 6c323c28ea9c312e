"""What all of the `lowtide` command shares: its options, and how it speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console

OUT = Console()
ERR = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value, for machines.")]
DataDir = Annotated[
    Path | None, typer.Option(envvar="DATA_DIR", help="Where the local stack keeps its state.")
]


def print_json(value: Any) -> None:
    """Print one JSON value."""
    typer.echo(msgspec.json.encode(value).decode())


def fail(message: str) -> NoReturn:
    """Say what is wrong, and exit with 1."""
    ERR.print(message, style="red", markup=False, soft_wrap=True)
    raise typer.Exit(1)

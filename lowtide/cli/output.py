"""Output of the `lowtide` command: tables, records, JSON and errors.

A terminal gets aligned text. A pipe gets tab-separated values with one header row.
"""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence


OUT = Console()
ERR = Console(stderr=True)

_GAP: Final = 2
# A column whose words are longer is folded within them.
_FOLDED: Final = 12


def print_json(value: Any) -> None:
    """Print one JSON value."""
    typer.echo(msgspec.json.encode(value).decode())


def fail(message: str) -> NoReturn:
    """Print an error message, and exit with 1."""
    ERR.print(message, style="red", markup=False, soft_wrap=True)
    raise typer.Exit(1)


def say(message: str) -> None:
    """Print a line, without markup and without wrapping it."""
    OUT.print(message, markup=False, highlight=False, soft_wrap=True)


def moment(at: datetime | float | None) -> str:
    """Format a time, or Unix seconds, in UTC; None is empty."""
    if at is None:
        return ""
    time = at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    ids: Collection[str] = (),
    empty: str = "",
) -> None:
    """Print a table, in which the columns `ids` are never cut or wrapped.

    A terminal that is too narrow for it gets a record per row. `empty` replaces a table without
    rows on a terminal.
    """
    cells = [[_plain(value) for value in row] for row in rows]
    if not OUT.is_terminal:
        for line in (columns, *cells):
            typer.echo("\t".join(line))
    elif not cells:
        say(empty)
    elif _min_width(columns, cells, ids) <= OUT.width:
        OUT.print(_table(columns, cells, ids))
    else:
        for row in cells:
            _print_compact(columns, row, ids)


def print_record(record: Mapping[str, object]) -> None:
    """Print one row: on a terminal as a line per value, else as tab-separated values."""
    if not OUT.is_terminal:
        print_table(list(record), [list(record.values())])
        return
    print_facts(OUT, record)


def print_facts(console: Console, record: Mapping[str, object]) -> None:
    """Print a line per value; none is cut or wrapped."""
    width = max(map(len, record)) + _GAP
    for name, value in record.items():
        line = f"{name:<{width}}{_plain(value)}".rstrip()
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _plain(value: object) -> str:
    """Return a value as text; control characters, tabs and line ends become spaces."""
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(
        " " if unicodedata.category(character) in {"Cc", "Zl", "Zp"} else character
        for character in text
    )


def _min_width(columns: Sequence[str], rows: Sequence[Sequence[str]], ids: Collection[str]) -> int:
    """Return the width at which ids are whole and other columns are still readable."""
    total = 0
    for index, name in enumerate(columns):
        cells = [name, *(row[index] for row in rows)]
        if name in ids:
            total += max(map(cell_len, cells))
        else:
            words = [word for cell in cells for word in cell.split()]
            total += min(max(map(cell_len, words), default=0), _FOLDED)
    return total + _GAP * (len(columns) - 1)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], ids: Collection[str]) -> Table:
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        if name in ids:
            width = max(cell_len(row[index]) for row in rows)
            table.add_column(name, no_wrap=True, min_width=width)
        else:
            table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _print_compact(columns: Sequence[str], row: Sequence[str], ids: Collection[str]) -> None:
    """Print a row as its ids on a line each, and the other values below."""
    values = dict(zip(columns, row, strict=True))
    for name in ids:
        if values[name]:
            say(values[name])
    rest = [f"{name}: {value}" for name, value in values.items() if value and name not in ids]
    OUT.print(Text("  " + " · ".join(rest)), overflow="fold")

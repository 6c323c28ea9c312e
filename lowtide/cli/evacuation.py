"""`lowtide cells evacuate` and `copy-fences`: what a failed cell has goes on elsewhere.

`evacuate` connects as the commands of `lowtide tenants` do, to the cell that takes over.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lowtide.cli.options import DataDir, Json
from lowtide.cli.output import ERR, fail, print_json, print_table, say
from lowtide.cli.stack import operating
from lowtide.core.ids import LAST_CELL, format_batch_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lowtide.cells.evacuation import Evacuated
    from lowtide.cells.model import Cell, Cells


CellsFile = Annotated[
    Path, typer.Option("--cells", envvar="LOWTIDE_CELLS", help="File of the cells.")
]
Bucket = Annotated[
    str, typer.Option(help="URL of the bucket of that cell, such as s3://lowtide-eu.")
]


def evacuate(
    name: Annotated[str, typer.Argument(help="Name of the cell to evacuate.")],
    bucket: Bucket,
    cells_file: CellsFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report what would be moved.")
    ] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Continue another cell's unfinished batches in this one.

    Repeat it after an interruption. It can run in several cells at once. With a replica of the bucket, stop the
    cell first, and run `lowtide cells copy-fences` before it starts again.
    """
    from lowtide.cells.evacuation import LEFT

    with operating(data_dir) as operator:
        declared = _read(cells_file)
        cell = _named(declared, name)
        number = operator.app.settings.cell
        here = next((each for each in declared.cells if each.number == number), None)
        if here is None:
            fail(f"LOWTIDE_CELL must be the number of a cell in {cells_file}.")
        evacuation = operator.app.evacuation(
            cell.number,
            cell.name,
            bucket,
            actor=operator.actor,
            may_have=lambda tenant: here in declared.allowed(tenant),
        )
        evacuation.check()
        batches = evacuation.recorded()
        with _progress(len(batches)) as progress:
            results = evacuation.run(batches, dry_run=dry_run, progress=lambda _: progress())
    _show(name, results, dry_run=dry_run, as_json=as_json)
    if any(result.outcome in LEFT for result in results):
        raise typer.Exit(1)


def copy_fences(
    replica: Annotated[str, typer.Option("--from", help="URL of the replica that was evacuated.")],
    bucket: Annotated[str, typer.Option("--to", help="URL of the bucket of the cell.")],
    as_json: Json = False,
) -> None:
    """Copy the fences of an evacuation from a replica to the bucket of its cell, before that starts."""
    from lowtide.batches.ledger import Ledger
    from lowtide.core.errors import LowtideError
    from lowtide.objects.store import ObstoreObjects

    copied, conflicts = 0, []
    try:
        # It claims nothing, so that its own number does not matter.
        source, target = (Ledger(ObstoreObjects(url), LAST_CELL) for url in (replica, bucket))
        for each in source.fences():
            fence = source.fence(each.batch)
            if fence is None or fence.cell == source.owner():
                continue
            if target.copy_fence(each.batch, fence).cell == fence.cell:
                copied += 1
            else:
                conflicts.append(format_batch_id(each.batch))
    except LowtideError as error:
        fail(error.message)
    except ValueError as error:
        fail(str(error))
    if as_json:
        print_json({"copied": copied, "ended_twice": conflicts})
    else:
        say(f"Copied {copied:,} fences.")
        for batch in conflicts:
            say(f"{batch} had ended in its cell before the replica knew: it ends twice.")
    if conflicts:
        raise typer.Exit(1)


def _read(path: Path) -> Cells:
    from lowtide.cells.parsing import read_file

    return read_file(path)


def _named(declared: Cells, name: str) -> Cell:
    found = next((cell for cell in declared.cells if cell.name == name), None)
    if found is None:
        names = ", ".join(cell.name for cell in declared.cells)
        fail(f"There is no cell {name!r}: use one of {names}.")
    return found


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal; the yielded function counts a batch."""
    bar = Progress(
        TextColumn("evacuating"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=ERR,
        disable=not ERR.is_terminal,
    )
    task = bar.add_task("", total=total)
    with bar:
        yield lambda: bar.advance(task)


def _show(name: str, results: Sequence[Evacuated], *, dry_run: bool, as_json: bool) -> None:
    from lowtide.cells.evacuation import LEFT, Outcome

    counts = Counter(result.outcome for result in results)
    if as_json:
        batches = [
            {
                "batch_id": format_batch_id(result.batch),
                "outcome": result.outcome.value,
                "reason": result.reason,
            }
            for result in results
        ]
        by_outcome = {outcome.value: counts[outcome] for outcome in Outcome}
        print_json({"cell": name, "dry_run": dry_run, "counts": by_outcome, "batches": batches})
        return
    print_table(
        ("outcome", "batches", "stays"),
        [
            (outcome.value.replace("_", " "), counts[outcome], "yes" if outcome in LEFT else "no")
            for outcome in Outcome
            if counts[outcome]
        ],
        empty=f"{name} has no unfinished batches.",
    )
    for result in results:
        if result.outcome in LEFT:
            ERR.print(
                f"{format_batch_id(result.batch)} stays: {result.reason}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

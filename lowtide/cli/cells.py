"""`lowtide cells`: the cells of LOWTIDE_CELLS, as a front sees them."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowtide.cli.options import Json
from lowtide.cli.output import fail, print_json, print_table, say
from lowtide.core.durations import duration
from lowtide.core.errors import LowtideError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowtide.cells.heartbeats import Heartbeat


cells = typer.Typer(no_args_is_help=True, help="Cells: installations behind one front.")


@cells.command("list")
def list_cells(as_json: Json = False) -> None:
    """Ask every cell for its heartbeat; exits with 1 if one is away.

    The price is that of 1,000 requests, the wait until what is queued now has run, and interruptions
    are per spot worker and hour.
    """
    heartbeats = _ask()
    if as_json:
        print_json([_json(heartbeat) for heartbeat in heartbeats])
    else:
        print_table(
            (
                "cell", "region", "state", "fleet", "unfinished", "spot", "dedicated", "price",
                "wait", "interruptions", "problem",
            ),
            [row for heartbeat in heartbeats for row in _rows(heartbeat)],
        )  # fmt: skip
    if any(heartbeat.report is None for heartbeat in heartbeats):
        raise typer.Exit(1)


@cells.command("routes")
def print_routes(
    file: Annotated[
        Path, typer.Option("--cells", envvar="LOWTIDE_CELLS", help="File of the cells.")
    ],
    gateway: Annotated[str, typer.Option(help="Name of the Gateway.")] = "lowtide-front",
    namespace: Annotated[str, typer.Option(help="Namespace of the objects.")] = "lowtide-front",
) -> None:
    """Print HTTPRoutes that send calls with a cell's id to the cell, past the front; for Istio."""
    import yaml

    from lowtide.cells.parsing import read_file
    from lowtide.cells.routes import routes

    try:
        objects = list(routes(read_file(file), gateway, namespace))
    except LowtideError as error:
        fail(error.message)
    except ValueError as error:
        fail(str(error))
    say(yaml.safe_dump_all(objects, sort_keys=False).rstrip())


def _ask() -> Sequence[Heartbeat]:
    from lowtide.cells.heartbeats import Heartbeats
    from lowtide.cells.parsing import read_file
    from lowtide.cells.upstream import Upstream
    from lowtide.settings import read_settings

    # The table reports what the log would.
    logging.getLogger("lowtide.cells").addHandler(logging.NullHandler())
    upstream = Upstream()
    try:
        settings = read_settings()
        token = settings.cells_token.get_secret_value()
        if not settings.cells or not token:
            fail("LOWTIDE_CELLS or LOWTIDE_CELLS_TOKEN is not set: see docs/cells.md.")
        heartbeats = Heartbeats(read_file(Path(settings.cells)).cells, upstream, token)
    except ValueError as error:
        fail(str(error))
    try:
        return heartbeats.ask()
    finally:
        heartbeats.stop()
        upstream.close()


def _rows(heartbeat: Heartbeat) -> Iterator[tuple[object, ...]]:
    """Yield a row per fleet of a cell, and one for a cell without any."""
    cell, report = heartbeat.cell, heartbeat.report
    if report is None:
        yield (cell.name, cell.region, "away", *[""] * 7, heartbeat.problem)
        return
    state = "well" if cell.accepts_work else "finishing"
    for quote in report.quotes:
        yield (
            cell.name,
            cell.region,
            state,
            quote.fleet,
            quote.unfinished,
            quote.spot_workers,
            quote.dedicated_workers,
            f"{quote.price * 1000:.3g} {report.currency}",
            "no capacity" if quote.wait is None else duration(timedelta(seconds=quote.wait)),
            f"{quote.interruptions:.2g}",
            "",
        )
    if not report.quotes:
        yield (cell.name, cell.region, state, *[""] * 8)


def _json(heartbeat: Heartbeat) -> dict[str, object]:
    report = heartbeat.report
    return {
        **asdict(heartbeat.cell),
        "away": report is None,
        "problem": heartbeat.problem or None,
        "seconds": heartbeat.seconds,
        "currency": None if report is None else report.currency,
        "fleets": [] if report is None else [asdict(quote) for quote in report.quotes],
    }

"""The `lowtide` command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lowtide import __version__
from lowtide.cli import batches, evacuation, local_cells
from lowtide.cli.audit import audit
from lowtide.cli.buckets import buckets
from lowtide.cli.cells import cells
from lowtide.cli.dead_letters import dead_letters
from lowtide.cli.engines import engines
from lowtide.cli.explain import explain
from lowtide.cli.find import find
from lowtide.cli.fleets import fleets
from lowtide.cli.operators import keys, rewrap_keys, tenants
from lowtide.cli.options import DataDir, Json, Key, Url
from lowtide.cli.output import fail, print_json, print_table, say
from lowtide.cli.pools import pools
from lowtide.cli.stack import require_local, running_stack, stack_options
from lowtide.cli.usage import usage

if TYPE_CHECKING:
    from lowtide.local.state import Status


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(batches.submit)
app.add_typer(batches.batches, name="batches")
for command in (batches.show, batches.watch, batches.download, batches.cancel):
    app.command()(command)
app.command("retry-failed")(batches.retry_failed)
app.add_typer(tenants, name="tenants")
app.add_typer(keys, name="keys")
app.add_typer(audit, name="audit")
app.add_typer(buckets, name="buckets")
app.command()(rewrap_keys)
app.add_typer(pools, name="pools")
app.add_typer(engines, name="engines")
app.add_typer(fleets, name="fleets")
app.add_typer(cells, name="cells")
for of_cells in (evacuation.evacuate, evacuation.copy_fences, local_cells.kill, local_cells.start):
    cells.command()(of_cells)
app.add_typer(dead_letters, name="dead-letters")
app.command()(explain)
app.command()(find)
app.command()(usage)

Monitoring = Annotated[
    bool,
    typer.Option("--monitoring", envvar="MONITORING", help="Also run Prometheus and Alertmanager."),
]
Prometheus = Annotated[
    Path | None,
    typer.Option(envvar="PROMETHEUS", help="Prometheus binary (default: from PATH)."),
]
Alertmanager = Annotated[
    Path | None,
    typer.Option(envvar="ALERTMANAGER", help="Alertmanager binary (default: from PATH)."),
]
SynchronousBroker = Annotated[
    bool,
    typer.Option(
        "--synchronous-broker",
        envvar="SYNCHRONOUS_BROKER",
        help="Deliver events synchronously without storing them, like Knative's default broker.",
    ),
]


_MAX_CELLS: Final = 9  # ten ports above the first cell's API is its portal


def _print_version(*, wanted: bool) -> None:
    if wanted:
        say(f"lowtide {__version__}")
        raise typer.Exit


@app.callback()
def main(
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Batch inference on your own spot and dedicated GPUs."""


@app.command()
def up(
    port: Annotated[int, typer.Option(envvar="PORT", help="Port of the API.")] = 8080,
    portal_port: Annotated[
        int | None,
        typer.Option(envvar="PORTAL_PORT", help="Port of the portal (default: PORT + 10)."),
    ] = None,
    data_dir: DataDir = None,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Run in the background; return when the stack is ready."),
    ] = False,
    monitoring: Monitoring = False,
    prometheus: Prometheus = None,
    alertmanager: Alertmanager = None,
    synchronous_broker: SynchronousBroker = False,
    cells: Annotated[
        int,
        typer.Option(
            envvar="CELLS",
            min=0,
            max=_MAX_CELLS,
            help="Run this many cells behind a front, which has PORT: cell 2 has PORT + 2.",
        ),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Start the local stack: PostgreSQL, all functions, workers on demand, the portal."""
    options = stack_options(
        data_dir,
        port,
        portal_port,
        monitoring=monitoring,
        prometheus=prometheus,
        alertmanager=alertmanager,
        synchronous_broker=synchronous_broker,
        cells=cells,
    )
    from lowtide.local import runtime
    from lowtide.local.options import LocalError

    try:
        if not detach:
            runtime.up(options)
            return
        stack = runtime.up_detached(options)
    except LocalError as error:
        fail(str(error))
    _show_status(stack, as_json=as_json)


@app.command()
def down(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Stop the local stack. Unfinished batches continue at the next `up`."""
    require_local()
    from lowtide.local import runtime

    stopped = runtime.down(stack_options(data_dir).data_dir)
    if as_json:
        print_json({"stopped": stopped})
    else:
        directory = stack_options(data_dir).data_dir
        say("Stopped." if stopped else f"No local stack is running in {directory}.")


@app.command()
def status(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show the local stack's addresses, credentials and processes."""
    _show_status(running_stack(data_dir), as_json=as_json)


@app.command()
def validate(
    file: batches.File,
    as_json: Json = False,
) -> None:
    """Validate a batch file offline with the server's checks."""
    from lowtide.files.lines import LineReader
    from lowtide.files.validation import validate_stream
    from lowtide.services import line_limits
    from lowtide.settings import read_settings

    settings = read_settings()
    reader = LineReader(line_limits(settings), endpoints=settings.endpoints)
    with file.open("rb") as stream:
        validate_stream(stream, reader)
    if as_json:
        problems = [asdict(problem) for problem in reader.problems]
        print_json({"valid": not problems, "requests": reader.requests, "problems": problems})
    else:
        for problem in reader.problems:
            prefix = f"line {problem.line}: " if problem.line else ""
            say(f"{file}: {prefix}{problem.message}")
        if not reader.problems:
            say(f"{file}: {reader.requests} requests, no problems")
    if reader.problems:
        raise typer.Exit(1)


@app.command("portal-password")
def portal_password(
    password: Annotated[
        str,
        typer.Option(
            prompt=True,
            hide_input=True,
            confirmation_prompt=True,
            help="Password; prompted for if not given.",
        ),
    ],
) -> None:
    """Print the hash of a password for LOWTIDE_PORTAL_PASSWORD_HASH."""
    from lowtide.tenants.passwords import hash_password

    say(hash_password(password))


def _show_status(stack: Status, *, as_json: bool) -> None:
    if as_json:
        print_json(stack.to_dict())
        return
    say(f"API     {stack.base_url}/v1")
    say(f"key     {stack.api_key}")
    say(f"portal  {stack.portal_url}  password {stack.portal_password}")
    if stack.notice:
        say(f"workers {stack.notice}")
    if stack.cells:
        print_table(
            ("cell", "region", "state", "API", "portal", "restarts", "data"),
            [
                (
                    cell.process.name,
                    cell.region,
                    cell.process.state,
                    cell.base_url,
                    cell.portal_url,
                    cell.process.restarts,
                    cell.data_dir,
                )
                for cell in stack.cells
            ],
        )
    if stack.prometheus_url:
        say(f"metrics {stack.prometheus_url}")
        say(f"alerts  {stack.alertmanager_url}")
    print_table(
        ("process", "state", "pid", "port", "restarts"),
        [
            (process.name, process.state, process.pid, process.port, process.restarts)
            for process in stack.processes
        ],
    )

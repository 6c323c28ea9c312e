"""The `lowtide` command."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from lowtide.cli.dead_letters import dead_letters
from lowtide.cli.find import find
from lowtide.cli.operators import keys, tenants
from lowtide.cli.output import OUT, DataDir, Json, fail, print_json
from lowtide.cli.pools import pools
from lowtide.cli.stack import (
    Key,
    Url,
    api_errors,
    connect,
    require_local,
    running_stack,
    stack_options,
)
from lowtide.cli.usage import usage

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

    from lowtide.local.state import Status


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Batch inference on your own spot and dedicated GPUs.",
)
app.add_typer(tenants, name="tenants")
app.add_typer(keys, name="keys")
app.add_typer(pools, name="pools")
app.add_typer(dead_letters, name="dead-letters")
app.command()(find)
app.command()(usage)

File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSONL batch file.")]
Monitoring = Annotated[
    bool,
    typer.Option("--monitoring", envvar="MONITORING", help="Also run Prometheus and Alertmanager."),
]
SynchronousBroker = Annotated[
    bool,
    typer.Option(
        "--synchronous-broker",
        envvar="SYNCHRONOUS_BROKER",
        help="Deliver events synchronously without storing them, like Knative's default broker.",
    ),
]


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
    prometheus: Annotated[
        Path | None,
        typer.Option(envvar="PROMETHEUS", help="Prometheus binary (default: from PATH)."),
    ] = None,
    alertmanager: Annotated[
        Path | None,
        typer.Option(envvar="ALERTMANAGER", help="Alertmanager binary (default: from PATH)."),
    ] = None,
    synchronous_broker: SynchronousBroker = False,
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
        OUT.print("Stopped." if stopped else "No local stack is running.")


@app.command()
def status(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show the local stack's addresses, credentials and processes."""
    _show_status(running_stack(data_dir), as_json=as_json)


@app.command()
def submit(
    file: File,
    window: Annotated[str, typer.Option(help="Completion window, such as 30m, 24h or 7d.")] = "24h",
    user: Annotated[
        str | None, typer.Option(help="User of the batch, shown in the portal.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show progress until the batch ends.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Show progress until the batch ends, then save the output file here."),
    ] = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Upload a file and create a batch."""
    from lowtide.cli import client as api
    from lowtide.cli.output import show_summary

    client = connect(url, key, data_dir)
    start = time.monotonic()
    with api_errors():
        batch = api.submit(client, file, window=window, user=user)
        if not (watch or out):
            print_json(batch.to_dict()) if as_json else OUT.print(batch.id)
            return
        batch = _follow(client, batch, quiet=as_json)
        summary = api.summarize(batch, time.monotonic() - start)
        files = {} if out is None else api.save(client, batch, out)
    if as_json:
        print_json({**batch.to_dict(), "summary": asdict(summary), "files": files})
    else:
        show_summary(OUT, batch, summary, files)
    if batch.status != "completed":
        raise typer.Exit(1)


@app.command()
def batches(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List the newest batches."""
    with api_errors():
        page = connect(url, key, data_dir).batches.list(limit=limit).data
    if as_json:
        print_json([batch.to_dict() for batch in page])
        return
    table = Table("id", "status", "completed", "failed", "total", "window")
    for batch in page:
        counts = batch.request_counts
        row = (counts.completed, counts.failed, counts.total) if counts else (0, 0, 0)
        table.add_row(batch.id, batch.status, *map(str, row), batch.completion_window)
    OUT.print(table)


@app.command()
def cancel(
    batch_id: str,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Cancel a batch. Finished results remain available."""
    with api_errors():
        batch = connect(url, key, data_dir).batches.cancel(batch_id)
    print_json(batch.to_dict()) if as_json else OUT.print(f"{batch.id} is {batch.status}")


@app.command()
def validate(
    file: File,
    as_json: Json = False,
) -> None:
    """Validate a batch file offline with the server's checks."""
    from lowtide.files.lines import LineReader, read_lines
    from lowtide.services import line_limits
    from lowtide.settings import read_settings

    settings = read_settings()
    reader = LineReader(line_limits(settings), endpoints=settings.endpoints)
    with file.open("rb") as stream:
        for _ in read_lines(iter(lambda: stream.read(1 << 20), b""), reader):
            pass
    if as_json:
        problems = [asdict(problem) for problem in reader.problems]
        print_json({"valid": not problems, "requests": reader.requests, "problems": problems})
    else:
        for problem in reader.problems:
            prefix = f"line {problem.line}: " if problem.line else ""
            OUT.print(f"{file}: {prefix}{problem.message}", markup=False, soft_wrap=True)
        if not reader.problems:
            OUT.print(f"{file}: {reader.requests} requests, no problems", markup=False)
    if reader.problems:
        raise typer.Exit(1)


def _follow(client: OpenAI, batch: Batch, *, quiet: bool) -> Batch:
    from lowtide.cli.client import follow
    from lowtide.cli.output import BatchProgress

    with BatchProgress(Console(quiet=quiet)) as progress:
        return follow(client, batch, progress.show)


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

    OUT.print(hash_password(password), markup=False, highlight=False, soft_wrap=True)


def _show_status(stack: Status, *, as_json: bool) -> None:
    if as_json:
        print_json(stack.to_dict())
        return
    OUT.print(f"API     {stack.base_url}/v1", highlight=False)
    OUT.print(f"key     {stack.api_key}", highlight=False)
    OUT.print(f"portal  {stack.portal_url}  password {stack.portal_password}", highlight=False)
    if stack.prometheus_url:
        OUT.print(f"metrics {stack.prometheus_url}", highlight=False)
        OUT.print(f"alerts  {stack.alertmanager_url}", highlight=False)
    table = Table("process", "state", "pid", "port", "restarts")
    for process in stack.processes:
        table.add_row(
            process.name, process.state, str(process.pid), str(process.port), str(process.restarts)
        )
    OUT.print(table)

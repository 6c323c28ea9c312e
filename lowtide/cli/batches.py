"""Commands on batches: submit, list, show, watch, download, cancel, and run failed requests again."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lowtide.batches.model import BatchStatus
from lowtide.cli import batch_view
from lowtide.cli.access import access
from lowtide.cli.downloads import write
from lowtide.cli.options import AllTenants, DataDir, Json, Key, TenantName, Url
from lowtide.cli.output import ERR, OUT, fail, print_json, print_record, print_table, say
from lowtide.cli.stack import api_errors, connect
from lowtide.planning.urgency import MAX_PRIORITY, MIN_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from openai.types import Batch

    from lowtide.cli.access import Access


batches = typer.Typer(no_args_is_help=True, help="List batches.")


class What(StrEnum):
    """The files of a batch."""

    OUTPUT = "output"
    ERRORS = "errors"
    INPUT = "input"
    FAILED_INPUTS = "failed-inputs"


class Outcome(StrEnum):
    """The outcomes of requests that did not complete."""

    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSONL batch file.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="FILE|URL",
        help="JSONL batch file, or the URL of one in a registered bucket: s3://bucket/in.jsonl.",
    ),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="Batch id (batch_…).")]
Ids = Annotated[list[str], typer.Argument(metavar="ID…", help="Batch ids (batch_…).")]
Status = Annotated[BatchStatus | None, typer.Option(help="Only batches in this status.")]
Priority = Annotated[
    int,
    typer.Option(
        min=MIN_PRIORITY,
        max=MAX_PRIORITY,
        help="Higher runs first, among your batches whose deadlines hold.",
    ),
]
Outcomes = Annotated[
    list[Outcome] | None,
    typer.Option("--outcome", help="Only requests with this outcome; repeat it for several."),
]


def submit(
    source: Source,
    window: Annotated[str, typer.Option(help="Completion window, such as 30m, 24h or 7d.")] = "24h",
    user: Annotated[
        str | None, typer.Option(help="User of the batch, shown in the portal.")
    ] = None,
    endpoint: Annotated[
        str, typer.Option(help="Endpoint of the requests at a URL; a file names its own.")
    ] = "/v1/chat/completions",
    output_url: Annotated[
        str | None,
        typer.Option(
            help="Copy the results to this folder of a registered bucket: s3://bucket/out/."
        ),
    ] = None,
    priority: Priority = 0,
    watch_it: Annotated[
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
    """Upload a file, or name one in a registered bucket, and create a batch.

    A file above 64 MiB is sent in parts. If that is interrupted, run the command again: it sends
    only what is missing.
    """
    from lowtide.cli import client as api
    from lowtide.cli.progress import UploadProgress

    with api_errors():
        client = connect(url, key, data_dir)
        start = time.monotonic()
        terms = api.Terms(window, user, output_url, priority)
        if "://" in source:
            batch = api.submit_url(client, source, terms, endpoint=endpoint)
        else:
            batch = api.submit(client, _file(source), terms, progress=UploadProgress(ERR))
        if not (watch_it or out):
            print_json(batch.to_dict()) if as_json else say(batch.id)
            return
        # At once, so that the batch can be found if this command is interrupted.
        (ERR if as_json else OUT).print(batch.id, highlight=False, soft_wrap=True)
        batch = _follow(lambda: client.batches.retrieve(batch.id), batch, quiet=as_json)
        files = {} if out is None else api.save(client, batch, out)
    _finish(batch, time.monotonic() - start, files, as_json=as_json)


def _file(path: str) -> Path:
    """Return an existing file; raises BadParameter."""
    file = Path(path)
    if not file.is_file():
        raise typer.BadParameter(f"{path!r} is not a file.", param_hint="FILE|URL")
    return file


@batches.command("list")
def list_batches(
    status: Annotated[BatchStatus | None, typer.Option(help="Only batches in this status.")] = None,
    user: Annotated[
        str | None, typer.Option(help="Only batches whose user contains this text.")
    ] = None,
    after: Annotated[str | None, typer.Option(help="Last id of the previous page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List batches, newest first."""
    query = {"limit": str(limit), "status": status, "user": user, "after": after}
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        page = source.batches({name: value for name, value in query.items() if value is not None})
    if as_json:
        print_json(page)
        return
    tenants = source.tenants
    print_table(
        batch_view.columns(tenants=tenants),
        [batch_view.row(batch, tenants=tenants) for batch in page["data"]],
        ids=("id",),
        empty="No batches match.",
    )
    hint_next(page)


def show(
    batch_id: Id,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show the status, SLA, outcomes, times and cost of a batch."""
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        batch = source.batch(batch_id)
    print_json(batch) if as_json else print_record(batch_view.facts(batch))


def watch(
    batch_id: Id,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show the progress of a batch until it ends. Exits with 1 unless it completes."""
    from openai.types import Batch

    from lowtide.cli.client import seconds_of

    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:

        def read() -> Batch:
            return Batch.construct(**source.batch(batch_id))

        batch = _follow(read, read(), quiet=as_json)
    _finish(batch, seconds_of(batch), {}, as_json=as_json)


def download(
    batch_id: Id,
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Output file (default: named after the batch)."),
    ] = None,
    what: Annotated[
        What, typer.Option(help="The output, error or input file, or the inputs that failed.")
    ] = What.OUTPUT,
    outcome: Outcomes = None,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Download a file of a batch."""
    if outcome and what is not What.FAILED_INPUTS:
        fail(f"--outcome selects failed inputs: use it with --what {What.FAILED_INPUTS}.")
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        batch = source.batch(batch_id)
        target = out or Path(f"{batch['id']}_{what.replace('-', '_')}.jsonl")
        lines, written = write(_content(source, batch, what, outcome or ()), target)
    if as_json:
        print_json({"file": str(target), "what": what, "lines": lines, "bytes": written})
    else:
        say(f"{target}: {lines} lines")


def cancel(
    batch_ids: Ids,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Cancel batches. Finished results remain available."""
    failed = False
    for batch_id in batch_ids:
        with (
            _going_on() as problems,
            access(url, key, data_dir, tenant, all_tenants=all_tenants) as source,
        ):
            batch = source.cancel(batch_id)
            print_json(batch) if as_json else say(f"{batch['id']} is {batch['status']}")
        failed |= bool(problems)
    if failed:
        raise typer.Exit(1)


def retry_failed(
    batch_id: Id,
    outcome: Outcomes = None,
    window: Annotated[
        str | None, typer.Option(help="Completion window (default: that of the batch).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count, without changing anything.")
    ] = False,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run the failed, expired and cancelled requests of a batch again, in a new batch."""
    body: dict[str, Any] = {"batch_id": batch_id, "dry_run": dry_run}
    if outcome:
        body["outcomes"] = [each.capitalize() for each in outcome]
    if window is not None:
        body["completion_window"] = window
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        rerun = source.rerun(body)
    if as_json:
        print_json(rerun)
    elif dry_run:
        say(f"{rerun['requests']} requests of {rerun['source_batch_id']} would run again")
    else:
        # The id alone is on stdout, for scripts.
        text = f"{rerun['requests']} requests of {rerun['source_batch_id']} run again as"
        ERR.print(text, highlight=False, soft_wrap=True)
        say(rerun["batch_id"])


def hint_next(page: dict[str, Any]) -> None:
    """Name the option for the next page, on stderr so that a pipe gets rows alone."""
    if page["has_more"]:
        ERR.print(f"More results: --after {page['last_id']}", highlight=False, soft_wrap=True)


def _content(
    source: Access, batch: dict[str, Any], what: What, outcomes: Iterable[Outcome]
) -> Iterator[bytes]:
    """Return the content of a batch's file; fails if there is none."""
    if what is What.FAILED_INPUTS:
        return source.failed_inputs(batch, [each.capitalize() for each in outcomes])
    role = {What.ERRORS: "error"}.get(what, what.value)
    if batch.get(f"{role}_file_id") is None:
        fail(f"{batch['id']} is {batch['status']} and has no {role} file.")
    return source.batch_file(batch, role)


def _follow(read: Callable[[], Batch], batch: Batch, *, quiet: bool) -> Batch:
    from lowtide.cli.client import follow
    from lowtide.cli.progress import BatchProgress

    with BatchProgress(Console(quiet=quiet)) as progress:
        return follow(read, batch, progress.show)


def _finish(batch: Batch, seconds: float, files: dict[str, str], *, as_json: bool) -> None:
    """Print the figures of a batch that has ended; exits with 1 unless it completed."""
    from lowtide.cli.client import summarize
    from lowtide.cli.progress import show_summary

    summary = summarize(batch, seconds)
    if as_json:
        print_json({**batch.to_dict(), "summary": asdict(summary), "files": files})
    else:
        show_summary(OUT, batch, summary, files)
    if batch.status != "completed":
        raise typer.Exit(1)


@contextmanager
def _going_on() -> Iterator[list[typer.Exit]]:
    """Catch the exit of a command that failed, so that the next batch is cancelled too."""
    problems: list[typer.Exit] = []
    try:
        yield problems
    except typer.Exit as error:
        problems.append(error)

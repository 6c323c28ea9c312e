"""`lowtide dead-letters`: list, show, download, requeue and discard dead letters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowtide.cli.access import access
from lowtide.cli.batches import hint_next
from lowtide.cli.downloads import write
from lowtide.cli.options import AllTenants, DataDir, Json, Key, TenantName, Url
from lowtide.cli.output import ERR, OUT, fail, print_json, print_table, say
from lowtide.core.pools import Pool
from lowtide.dead_letters.model import LetterState
from lowtide.dead_letters.service import Content

if TYPE_CHECKING:
    from lowtide.cli.access import Access


dead_letters = typer.Typer(
    no_args_is_help=True,
    help="Manage dead letters: requests that exhausted their attempts or took down several workers.",
)

Ids = Annotated[
    list[str] | None, typer.Argument(help="Dead letter ids (batch_req_…).", show_default=False)
]
Batch = Annotated[str | None, typer.Option("--batch", help="Only dead letters of this batch.")]
Code = Annotated[
    str | None,
    typer.Option("--code", help="Only dead letters with this error code, such as http_500."),
]
State = Annotated[LetterState | None, typer.Option(help="Only dead letters in this state.")]
All = Annotated[bool, typer.Option("--all", help="All open dead letters.")]
Out = Annotated[Path, typer.Option(dir_okay=False, help="Output file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count, without changing anything.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation prompt.")]


@dead_letters.command("list")
def list_letters(
    batch: Batch = None,
    code: Code = None,
    state: State = None,
    after: Annotated[str | None, typer.Option(help="Last id of the previous page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""
    query = _query(batch, code, state) | {"limit": str(limit)}
    if after is not None:
        query["after"] = after
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        page = source.letters(query)
    if as_json:
        print_json(page)
        return
    owner = ("tenant",) if source.tenants else ()
    names = ("id", *owner, "custom_id", "state", "error_code")
    print_table(
        names,
        [[letter[name] for name in names] for letter in page["data"]],
        ids=("id",),
        empty="No dead letters match.",
    )
    hint_next(page)


@dead_letters.command()
def summary(
    batch: Batch = None,
    code: Code = None,
    state: State = LetterState.OPEN,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Count dead letters by error, open ones by default."""
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        counts = source.letter_summary(_query(batch, code, state))
    if as_json:
        print_json(counts)
        return
    names = ("letters", "error_code", "error_message")
    print_table(
        names,
        [[group[name] for name in names] for group in counts["groups"]],
        empty="No dead letters match.",
    )
    more = " or more" if counts["capped"] else ""
    ERR.print(f"{counts['total']:,}{more} in total.", highlight=False)


@dead_letters.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID")],
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show a dead letter with its input and its last response."""
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        letter = source.letter(letter_id)
    if as_json:
        print_json(letter)
    else:
        OUT.print_json(data=letter)


@dead_letters.command()
def requeue(
    ids: Ids = None,
    batch: Batch = None,
    code: Code = None,
    select_all: All = False,
    window: Annotated[
        str | None, typer.Option(help="Completion window (default: that of each source batch).")
    ] = None,
    pool: Annotated[
        Pool, typer.Option(help="Pool to queue in. Requests queued in dedicated stay there.")
    ] = Pool.SPOT,
    dry_run: DryRun = False,
    yes: Yes = False,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Requeue dead letters: one new batch for each source batch."""
    body = _selection(ids, batch, code, select_all=select_all) | {"pool": pool.value}
    if window is not None:
        body["completion_window"] = window
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        result = _change(source, "requeue", body, dry_run=dry_run, yes=yes, quiet=as_json)
    if as_json:
        print_json(result)
        return
    for requeued in result["batches"]:
        new = requeued["batch_id"] or "a new batch"
        say(f"{requeued['letters']} from {requeued['source_batch_id']} to {new}")
    _print_result("requeued", result)


@dead_letters.command()
def discard(
    ids: Ids = None,
    batch: Batch = None,
    code: Code = None,
    select_all: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Discard dead letters. They stay in the list and in the batch's error file."""
    body = _selection(ids, batch, code, select_all=select_all)
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        result = _change(source, "discard", body, dry_run=dry_run, yes=yes, quiet=as_json)
    if as_json:
        print_json(result)
    else:
        _print_result("discarded", result)


@dead_letters.command()
def download(
    out: Out,
    which: Annotated[
        Content, typer.Option(help="Inputs of the requests, or their last responses.")
    ] = Content.INPUT,
    batch: Batch = None,
    code: Code = None,
    state: State = None,
    tenant: TenantName = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Download inputs as JSONL requests, or last responses in the format of the error file."""
    query = _query(batch, code, state) | {"which": which.value}
    with access(url, key, data_dir, tenant, all_tenants=False) as source:
        lines, written = write(source.letter_content(query), out)
    if as_json:
        print_json({"file": str(out), "which": which.value, "lines": lines, "bytes": written})
    else:
        say(f"{out}: {lines} dead letters")


def _selection(
    ids: list[str] | None, batch: str | None, code: str | None, *, select_all: bool
) -> dict[str, Any]:
    """Return the body that selects dead letters; fails unless exactly one selection is given."""
    filters = {"batch_id": batch, "error_code": code}
    filters = {name: value for name, value in filters.items() if value is not None}
    if bool(ids) + bool(filters) + select_all != 1:
        fail("Select dead letters by id, by --batch and --code, or with --all.")
    return {"ids": ids} if ids else {"filter": filters}


def _change(
    source: Access, action: str, body: dict[str, Any], *, dry_run: bool, yes: bool, quiet: bool
) -> Any:
    """Count the dead letters, ask for confirmation, and change them; return the response."""
    preview = source.end_letters(action, body | {"dry_run": True})
    if dry_run or not preview["changed"]:
        return preview
    if not yes:
        if quiet:
            fail(f"This would {action} {preview['changed']} dead letters. Add --yes to confirm.")
        typer.confirm(f"{action.capitalize()} {preview['changed']} dead letters?", abort=True)
    return source.end_letters(action, body)


def _print_result(action: str, result: dict[str, Any]) -> None:
    prefix = "would be " if result["dry_run"] else ""
    text = f"{result['changed']} dead letters {prefix}{action}"
    if result["unchanged"]:
        text += f"; {result['unchanged']} were already requeued or discarded"
    if result["remaining"]:
        text += f"; {result['remaining']} remain, run the command again"
    say(f"{text}.")


def _query(batch: str | None, code: str | None, state: LetterState | None) -> dict[str, str]:
    filters = {
        "batch_id": batch,
        "error_code": code,
        "state": None if state is None else state.value,
    }
    return {name: value for name, value in filters.items() if value is not None}

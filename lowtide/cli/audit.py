"""`lowtide audit`: what operators, keys and people did."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from lowtide.cli.options import DataDir
from lowtide.cli.output import print_json
from lowtide.cli.stack import operating
from lowtide.core.durations import parse_span
from lowtide.core.scopes import Role
from lowtide.tenants.sign_in import Principal

audit = typer.Typer(no_args_is_help=True, help="Read the audit log.")


def _time(text: str) -> datetime:
    """Parse a time, or a span before now; raises BadParameter."""
    span = parse_span(text)
    if span is not None:
        return datetime.now(UTC) - span
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: use a span such as 24h or 7d, or a time such as 2026-11-01T08:00Z."
        ) from None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


@audit.command("export")
def export(
    since: Annotated[
        datetime | None,
        typer.Option(parser=_time, metavar="SPAN|TIME", help="Only entries since then."),
    ] = None,
    after: Annotated[
        int, typer.Option(min=0, help="Only entries after this id, such as the last one of a run.")
    ] = 0,
    data_dir: DataDir = None,
) -> None:
    """Print the log as a JSON object per line, oldest first; the last two minutes are left out."""
    with operating(data_dir) as operator:
        principal = Principal(operator.actor, Role.OPERATOR)
        log = operator.app.administration.export_audit(principal, since=since, after=after)
        for entry in log:
            print_json(entry)

"""`lowtide find`: search for batches, files and requests."""

from __future__ import annotations

from typing import Annotated

import typer

from lowtide.cli.access import access
from lowtide.cli.options import AllTenants, DataDir, Json, Key, TenantName, Url
from lowtide.cli.output import ERR, print_json, print_table

Sought = Annotated[
    str,
    typer.Argument(
        metavar="TEXT", help="An id, a custom_id, a user or a metadata value, or the start of one."
    ),
]


def find(
    text: Sought,
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Find batches, files and requests, exact matches first."""
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        page = source.find(text)
    if as_json:
        print_json(page)
        return
    owner = ("tenant",) if source.tenants else ()
    rows = []
    for match in page["data"]:
        batch = match["batch"] or {"id": "", "user": "", "status": ""}
        facts = (batch["id"], batch["user"], batch["status"])
        rows.append(
            [*(match[name] for name in ("id", *owner, "field", "value")), *facts],
        )
    print_table(
        ("id", *owner, "field", "value", "batch", "user", "status"),
        rows,
        ids=("id", "batch"),
        empty="Nothing found.",
    )
    if page["more"]:
        kinds = ", ".join(page["more"])
        ERR.print(f"More matches of kind {kinds}: search for a longer text.", soft_wrap=True)

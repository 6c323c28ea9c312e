"""`lowtide find`: search for batches, files and requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import httpx
import msgspec
import typer
from rich.table import Column, Table
from rich.text import Text

from lowtide.cli.output import OUT, DataDir, Json, fail, print_json
from lowtide.cli.stack import Key, Url, api_errors, connect, operating
from lowtide.tenants.sign_in import Principal, Role

if TYPE_CHECKING:
    from pathlib import Path

    from lowtide.cli.stack import Operating
    from lowtide.core.ids import TenantId


Sought = Annotated[
    str,
    typer.Argument(
        metavar="TEXT", help="An id, a custom_id, a user or a metadata value, or the start of one."
    ),
]
OfTenant = Annotated[
    str | None, typer.Option("--tenant", help="Search a tenant as operator, on the database.")
]
AllTenants = Annotated[
    bool, typer.Option("--all-tenants", help="Search all tenants as operator, on the database.")
]


def find(
    text: Sought,
    tenant: OfTenant = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Find batches, files and requests, exact matches first."""
    if tenant is not None and all_tenants:
        raise typer.BadParameter("use either --tenant or --all-tenants.")
    if tenant is not None or all_tenants:
        page = _find_as_operator(text, tenant, data_dir)
    else:
        with api_errors():
            client = connect(url, key, data_dir)
            response = client.get(
                "/search", cast_to=httpx.Response, options={"params": {"q": text}}
            )
            page = msgspec.json.decode(response.content)
    if as_json:
        print_json(page)
    else:
        _show(page)


def _find_as_operator(text: str, tenant: str | None, data_dir: Path | None) -> dict[str, Any]:
    """Return the API's object, with the name of each match's tenant."""
    from lowtide.search.api import search_page

    with operating(data_dir) as operator:
        scope = None if tenant is None else _require_tenant(operator, tenant)
        result = operator.app.services.search.find(scope, text)
    page: dict[str, Any] = msgspec.to_builtins(search_page(result))
    for match, shown in zip(result.matches, page["data"], strict=True):
        shown["tenant"] = match.tenant_name or tenant
    return page


def _require_tenant(operator: Operating, name: str) -> TenantId:
    names = operator.app.administration.names(Principal(operator.actor, Role.OPERATOR))
    tenants = {known: tenant for tenant, known in names.items()}
    if name not in tenants:
        fail(f"Tenant {name!r} not found.")
    return tenants[name]


def _show(page: dict[str, Any]) -> None:
    """Print the matches as a table, in which ids are not wrapped."""
    if not page["data"]:
        OUT.print("Nothing found.")
        return
    has_tenants = "tenant" in page["data"][0]
    names = [
        "id",
        "field",
        "value",
        "batch",
        "user",
        "status",
        *(["tenant"] if has_tenants else []),
    ]
    columns = [Column(name, no_wrap=name in {"id", "batch"}, overflow="ignore") for name in names]
    table = Table(*columns)
    for match in page["data"]:
        batch = match["batch"] or {"id": "", "user": "", "status": ""}
        cells = [
            match["id"],
            match["field"],
            match["value"],
            batch["id"],
            batch["user"],
            batch["status"],
        ]
        table.add_row(*map(Text, cells), *([match["tenant"]] if has_tenants else []))
    OUT.print(table)
    if page["more"]:
        OUT.print(f"More matches of kind {', '.join(page['more'])}: search for a longer text.")

"""Options that several commands take, before or after the command's name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _inherit(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """Return the option's value, else the one given before the command's name."""
    name = str(parameter.name)
    source = context.get_parameter_source(name)
    if source is not None and source.name == "COMMANDLINE":
        return value
    return context.find_root().params.get(name, value)


Json = Annotated[
    bool, typer.Option("--json", help="Print machine-readable JSON.", callback=_inherit)
]
DataDir = Annotated[
    Path | None,
    typer.Option(envvar="DATA_DIR", help="Data directory of the local stack.", callback=_inherit),
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="OPENAI_BASE_URL",
        help="Server URL (default: the local stack).",
        callback=_inherit,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        envvar="OPENAI_API_KEY",
        help="API key (default: the local stack's).",
        callback=_inherit,
    ),
]
TenantName = Annotated[
    str | None,
    typer.Option("--tenant", help="For this tenant, as an operator on the database."),
]
AllTenants = Annotated[
    bool,
    typer.Option("--all-tenants", help="For all tenants, as an operator on the database."),
]

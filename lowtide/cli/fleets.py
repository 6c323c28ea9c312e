"""`lowtide fleets`: check the file of fleets, list them, write their manifests."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowtide.cli.options import Json
from lowtide.cli.output import fail, print_json, print_table, say

if TYPE_CHECKING:
    from lowtide.fleets.model import PoolSpec


File = Annotated[Path, typer.Argument(help="File of fleets.")]
To = Annotated[Path, typer.Option(help="Folder of the component: knative/fleets.")]
Source = Annotated[
    Path | None, typer.Argument(help="File of fleets (default: fleets.yaml in that folder).")
]

fleets = typer.Typer(
    no_args_is_help=True, help="Check and list the fleets, and write their manifests."
)


@fleets.command()
def check(file: File) -> None:
    """Report every mistake of a file, with its line; exits with 1 if there is one."""
    from lowtide.fleets.parsing import read_file
    from lowtide.settings import read_settings

    try:
        found = read_file(file, read_settings()).fleets
    except ValueError as error:
        fail(str(error))
    say(f"{file}: {len(found.names)} fleets, no problems: {', '.join(found.names)}")


@fleets.command("list")
def list_fleets(as_json: Json = False) -> None:
    """List the fleets of LOWTIDE_FLEETS, with their models, engines and bounds."""
    from lowtide.fleets.file import read_fleets
    from lowtide.settings import read_settings

    try:
        found = read_fleets(read_settings())
    except ValueError as error:
        fail(str(error))
    if as_json:
        print_json([asdict(fleet) for fleet in found])
        return
    print_table(
        ("fleet", "models", "gpu", "engine", "spot", "dedicated", "fallback"),
        [
            (
                fleet.name,
                ", ".join((*fleet.models, *fleet.aliases)),
                fleet.gpu or "",
                fleet.engine.url,
                _bounds(fleet.spot),
                _bounds(fleet.dedicated),
                fleet.fallback or "",
            )
            for fleet in found
        ],
    )


@fleets.command()
def render(to: To, file: Source = None) -> None:
    """Write the Kubernetes manifests of the fleets, as a kustomize component.

    What the file omits are the settings' defaults, whatever the environment, so that the same file
    gives the same manifests everywhere.
    """
    from lowtide.fleets.parsing import read_file
    from lowtide.fleets.render import render as rendered
    from lowtide.fleets.render import write
    from lowtide.local.options import default_root
    from lowtide.settings import Settings

    try:
        parsed = read_file(file or to / "fleets.yaml", Settings.model_construct())
        files = rendered(parsed, default_root())
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error}: fleets are rendered from a Lowtide checkout.")
    write(files, to)
    say(f"{to}: {len(parsed.fleets.names)} fleets in {len(files)} files")


def _bounds(pool: PoolSpec) -> str:
    return f"{pool.min_replicas} to {pool.max_replicas}"

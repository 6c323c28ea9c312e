"""The file of cells: its format, and all problems of one at once, with their lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from lowtide.cells.model import Cell, Cells
from lowtide.core.ids import LAST_CELL, NAME
from lowtide.core.yaml_files import Part, YamlFile, problems_of, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowtide.core.yaml_files import Location, Problem


_FIXES: Final = {
    NAME: "must be up to 63 of a-z, 0-9, '.', '_' and '-', with a letter or a digit first",
}
_SECRETS_IN: Final = "callers' keys pass through the front, and it has none of its own"
_Name = Annotated[str, StringConstraints(pattern=NAME)]


def _web_address(value: str) -> str:
    """Validate an address; raises ValueError."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must start with http:// or https:// and have a host, but no query")
    if parts.username is not None:
        raise ValueError("must have no user: callers' keys pass through")
    return value.rstrip("/")


def _address(value: str) -> str:
    """Validate the address of a cell's API, and return it without /v1; raises ValueError."""
    return _web_address(value).removesuffix("/v1")


class CellPart(Part):
    """One installation."""

    number: int = Field(
        ge=1, le=LAST_CELL, description="Its LOWTIDE_CELL, which the ids of its objects carry."
    )
    name: _Name = Field(description="Its name, for people.")
    url: Annotated[str, AfterValidator(_address)] = Field(
        description="Address of its API, without /v1."
    )
    region: _Name = Field(description="The region that its data is in.")
    unnumbered_ids: bool = Field(
        default=False, description="Whether it had files or batches before it got its number."
    )
    accepts_work: bool = Field(
        default=True,
        description="Whether new files and batches may go there; else it only finishes.",
    )
    portal: Annotated[str, AfterValidator(_web_address)] | None = Field(
        default=None, description="Address of its portal, to which other cells' portals link."
    )


class TenantPart(Part):
    """Where the data of a tenant may be."""

    regions: tuple[_Name, ...] = Field(min_length=1, description="Regions of cells.")


class CellsFile(Part):
    """The file that LOWTIDE_CELLS names."""

    cells: tuple[CellPart, ...] = Field(min_length=1, description="All cells.")
    tenants: dict[_Name, TenantPart] = Field(
        default={}, description="Tenants whose data stays in some regions; others may be anywhere."
    )


def read_file(path: Path) -> Cells:
    """Read a file of cells; raises InvalidFile."""
    return parse(read_text(path), path.name)


def parse(text: str, name: str = "cells.yaml") -> Cells:
    """Parse the text of a file; raises InvalidFile, whose lines name the file and the line."""
    file = YamlFile.parse(text, name)
    found: list[Problem] = []
    try:
        content = CellsFile.model_validate(file.data)
    except ValidationError as error:
        found += problems_of(error, CellsFile, _FIXES, secrets_in=_SECRETS_IN)
    else:
        found += _contradictions(content)
        if not found and not file.repeated:
            cells = [Cell(**part.model_dump()) for part in content.cells]
            residency = {
                tenant: frozenset(part.regions) for tenant, part in content.tenants.items()
            }
            return Cells(cells, residency)
    raise file.refusal((location, _text(location, message)) for location, message in found)


def _contradictions(content: CellsFile) -> Iterator[Problem]:
    for key in ("number", "name", "url"):
        seen: set[object] = set()
        for position, part in enumerate(content.cells):
            value = getattr(part, key)
            if value in seen:
                yield ("cells", position, key), "is that of another cell: each needs its own"
            seen.add(value)
    regions = {part.region for part in content.cells}
    for tenant, rule in content.tenants.items():
        if unknown := sorted(set(rule.regions) - regions):
            yield ("tenants", tenant, "regions"), f"has no cell in {', '.join(unknown)}"


def _text(location: Location, message: str) -> str:
    parts = [str(part) for part in location]
    if len(parts) > 1 and parts[0] == "cells":
        parts = [f"cell {int(parts[1]) + 1}", *parts[2:]]
    return f"{'.'.join(parts)}: {message}" if parts else message

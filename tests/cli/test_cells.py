"""The commands `lowtide cells`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lowtide.tenants.audit import AuditFilter, AuditLog
from tests.cells.hosts import Host
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Command
    from tests.conftest import Database

CELLS = """
cells:
  - {number: 1, name: east, url: "http://east", region: us}
  - {number: 2, name: west, url: "http://west", region: us}
  - {number: 3, name: north, url: "http://north", region: eu}
tenants:
  acme: {regions: [eu]}
"""


@pytest.fixture
def east(
    lowtide: Command, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    """The cell `east` with an unfinished batch; the command runs in `west`."""
    del lowtide  # its environment is set first
    cells = tmp_path / "cells.yaml"
    cells.write_text(CELLS)
    monkeypatch.setenv("LOWTIDE_OBJECT_STORE_URL", (tmp_path / "west").as_uri())
    host = Host(1, world.database, (tmp_path / "east").as_uri())
    host.check()
    host.create()
    monkeypatch.setenv("LOWTIDE_CELL", "2")
    yield host
    host.close()


@pytest.fixture
def arguments(east: Host, tmp_path: Path) -> list[str]:
    return [
        "cells",
        "evacuate",
        "east",
        "--bucket",
        east.bucket,
        "--cells",
        f"{tmp_path}/cells.yaml",
    ]


def test_batches_are_evacuated_and_audited(
    lowtide: Command, database: Database, east: Host, arguments: list[str]
) -> None:
    (batch,) = east.sources
    name = f"batch_{batch.hex}"
    planned = lowtide.json(*arguments, "--dry-run")
    assert planned["dry_run"] is True
    assert planned["batches"] == [{"batch_id": name, "outcome": "evacuated", "reason": ""}]
    assert lowtide.json("batches", "list", "--tenant", "default")["data"] == []
    assert lowtide.table(*arguments) == [{"outcome": "evacuated", "batches": "1", "stays": "no"}]
    log = AuditLog(database.engine("operator"))
    (entry,) = log.page(AuditFilter(action="cells.evacuate"), after=None, limit=9)
    assert (entry.tenant, entry.subject) == ("default", f"{name} of cell east")
    assert entry.actor.endswith("(cli)")
    again = lowtide.json(*arguments)
    assert again["batches"] == []


def test_batches_that_stay_are_named_and_make_the_command_fail(
    lowtide: Command, east: Host, arguments: list[str]
) -> None:
    tenant = World(east.database).tenant("acme")
    batch = east.create(tenant=tenant)
    result = lowtide(*arguments, exit_code=1)
    assert result.stdout.splitlines() == [
        "outcome\tbatches\tstays", "evacuated\t1\tno", "wrong region\t1\tyes",
    ]  # fmt: skip
    reason = "the data of acme must not be in the region of this cell"
    assert result.stderr.strip() == f"batch_{batch.hex} stays: {reason}"
    report = json.loads(lowtide(*arguments, "--json", exit_code=1).stdout)
    assert report["counts"]["wrong_region"] == 1


@pytest.mark.parametrize(
    ("cell", "name", "message"),
    [
        pytest.param("2", "south", "There is no cell 'south': use one of east", id="unknown"),
        pytest.param("9", "east", "LOWTIDE_CELL must be the number of a cell", id="not declared"),
        pytest.param("2", "north", "bucket of cell 1, but north is cell 3", id="wrong bucket"),
    ],
)
def test_mistakes_are_explained(
    lowtide: Command, arguments: list[str], monkeypatch: pytest.MonkeyPatch,
    cell: str, name: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("LOWTIDE_CELL", cell)
    arguments[2] = name
    assert message in lowtide(*arguments, exit_code=1).output

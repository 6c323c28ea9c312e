"""`lowtide cells`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from lowtide.cells.model import Quote, Report
from lowtide.cli.main import app
from tests.cells.stubs import TOKEN, Stub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

EUROPE = Report(
    [
        Quote(
            ["llama-*"],
            price=0.00042,
            wait=125.4,
            interruptions=1.25,
            fleet="large",
            unfinished=1200,
            spot_workers=3,
            dedicated_workers=1,
        ),
        Quote(["e5"], price=0.5, wait=None, fleet="small"),
    ],
    "EUR",
    1,
)


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Stub]]:
    """Two cells that are well, and their file."""
    cells = [Stub(1), Stub(2)]
    cells[0].report = EUROPE
    file = tmp_path / "cells.yaml"
    file.write_text(
        f"cells:\n"
        f"  - {{number: 1, name: frankfurt-1, url: '{cells[0].url}', region: eu}}\n"
        f"  - {{number: 2, name: virginia-1, url: '{cells[1].url}', region: us, accepts_work: false}}\n"
    )
    monkeypatch.setenv("LOWTIDE_CELLS", str(file))
    monkeypatch.setenv("LOWTIDE_CELLS_TOKEN", TOKEN)
    yield cells
    for cell in cells:
        cell.stop()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["cells", *arguments])


def table() -> list[dict[str, str]]:
    header, *rows = run("list").stdout.splitlines()
    return [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]


def test_list_has_a_row_per_fleet(stubs: list[Stub]) -> None:
    assert run("list").exit_code == 0
    large, small, virginia = table()
    assert large == {
        "cell": "frankfurt-1",
        "region": "eu",
        "state": "well",
        "fleet": "large",
        "unfinished": "1200",
        "spot": "3",
        "dedicated": "1",
        "price": "0.42 EUR",
        "wait": "2 min 5 s",
        "interruptions": "1.2",
        "problem": "",
    }
    assert (small["fleet"], small["price"], small["wait"]) == ("small", "500 EUR", "no capacity")
    assert (virginia["cell"], virginia["state"], virginia["fleet"]) == (
        "virginia-1",
        "finishing",
        "",
    )
    assert [stub.calls for stub in stubs] == [["GET /v1/cell"] * 2] * 2


def test_json_has_every_figure(stubs: list[Stub]) -> None:
    stubs[1].status = 401
    result = run("list", "--json")
    assert result.exit_code == 1, "a cell is away"
    frankfurt, virginia = json.loads(result.stdout)
    found: dict[str, Any] = frankfurt["fleets"][0]
    assert (frankfurt["name"], frankfurt["away"], frankfurt["currency"]) == (
        "frankfurt-1",
        False,
        "EUR",
    )
    assert (found["price"], found["wait"], found["models"]) == (0.00042, 125.4, ["llama-*"])
    assert (virginia["away"], virginia["fleets"]) == (True, [])
    assert "answers 401" in virginia["problem"]


def test_cell_that_is_away_says_why(stubs: list[Stub]) -> None:
    stubs[0].stop()
    stubs[1].report = Report([], cell=7)
    assert run("list").exit_code == 1
    assert [(row["state"], row["problem"]) for row in table()] == [
        ("away", "does not answer"),
        ("away", "says that its LOWTIDE_CELL is 7, not 2"),
    ]


@pytest.mark.parametrize("missing", ["LOWTIDE_CELLS", "LOWTIDE_CELLS_TOKEN"])
def test_missing_setting_is_named(
    stubs: list[Stub], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    assert stubs
    monkeypatch.delenv(missing)
    result = run("list")
    assert (result.exit_code, missing in result.stderr) == (1, True)


def test_problems_of_the_file_are_reported(
    stubs: list[Stub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert stubs
    file = tmp_path / "wrong.yaml"
    file.write_text("cells: [{number: 0}]")
    monkeypatch.setenv("LOWTIDE_CELLS", str(file))
    result = run("list")
    assert (result.exit_code, "wrong.yaml:1: cell 1.number" in result.stderr) == (1, True)

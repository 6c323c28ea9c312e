"""Routes of a gateway: their patterns match the ids of one cell, and no other's."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lowtide.cells.model import Cell, Cells
from lowtide.cells.routes import id_pattern, routes
from lowtide.cli.main import app
from lowtide.core.errors import InvalidRequest
from lowtide.core.ids import LAST_CELL, cell_of, derived_file_id, format_batch_id, ids_of_cell
from manifests import models, schemas

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

NUMBERS = st.integers(1, LAST_CELL)
ONE = Cell(1, "one", "https://one.example", "eu")
TWO = Cell(2, "two", "http://two.example:8080", "us")


@given(NUMBERS, NUMBERS)
def test_pattern_matches_ids_of_its_cell_alone(own: int, other: int) -> None:
    pattern = re.compile(id_pattern(own))
    id_ = ids_of_cell(own)()
    assert pattern.fullmatch(id_.hex)
    assert bool(pattern.fullmatch(ids_of_cell(other)().hex)) == (own == other)
    derived: UUID = derived_file_id(id_, "output")  # type: ignore[arg-type]
    assert cell_of(derived) == own
    assert pattern.fullmatch(derived.hex)


def test_routes_are_valid_and_lead_to_their_cells() -> None:
    objects = list(routes(Cells([ONE, TWO]), "lowtide-front", "lowtide-front"))
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert sorted(found) == [
        ("DestinationRule", "cell-1"),
        ("HTTPRoute", "cell-1"),
        ("HTTPRoute", "cell-2"),
        ("ServiceEntry", "cell-1"),
        ("ServiceEntry", "cell-2"),
    ]
    for route in (found["HTTPRoute", "cell-1"], found["HTTPRoute", "cell-2"]):
        assert list(schemas.findings(route)) == list(models.findings(route)) == []
    (rule,) = found["HTTPRoute", "cell-2"]["spec"]["rules"]
    assert rule["backendRefs"][0] | {"group": ""} == {
        "group": "",
        "kind": "Hostname",
        "name": "two.example",
        "port": 8080,
    }
    path = f"/v1/batches/{format_batch_id(ids_of_cell(2)())}"  # type: ignore[arg-type]
    patterns = [re.compile(match["path"]["value"]) for match in rule["matches"]]
    for one in (path, path + "/cancel"):
        assert [bool(pattern.fullmatch(one)) for pattern in patterns] == [False, False, True]


def test_cells_that_only_the_front_can_serve_have_no_routes() -> None:
    closed = Cells([replace(ONE, accepts_work=False), TWO])
    names = {each["metadata"]["name"] for each in routes(closed, "g", "n")}
    assert names == {"cell-2"}
    with pytest.raises(InvalidRequest, match="older ids of one"):
        list(routes(Cells([replace(ONE, unnumbered_ids=True), TWO]), "g", "n"))


def test_command_prints_them(tmp_path: Path) -> None:
    file = tmp_path / "cells.yaml"
    file.write_text("cells: [{number: 1, name: one, url: 'http://one.example', region: eu}]")
    printed = CliRunner().invoke(app, ["cells", "routes", "--cells", str(file)])
    assert printed.exit_code == 0
    assert [each["kind"] for each in yaml.safe_load_all(printed.stdout)] == [
        "ServiceEntry",
        "HTTPRoute",
    ]
    file.write_text(file.read_text().replace("region: eu", "region: eu, unnumbered_ids: true"))
    refused = CliRunner().invoke(app, ["cells", "routes", "--cells", str(file)])
    assert refused.exit_code == 1
    assert "older ids of one" in refused.stderr

"""Files of cells that the repository shows: each is valid, and those that belong together agree."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import yaml
from jsonschema import validate

from lowtide.cells.parsing import parse
from tests.docs.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLE = ROOT / "examples" / "cells.yaml"
MAPS = [ROOT / "knative" / folder / "cells.yaml" for folder in ("front", "components/cell")]


def of_map(path: Path) -> str:
    """Return the file in a ConfigMap."""
    text: str = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["cells.yaml"]
    return text


def test_example_is_valid_and_names_its_schema() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    cells = parse(text)
    assert {cell.name: (cell.number, cell.accepts_work) for cell in cells.cells} == {
        "frankfurt": (1, True),
        "dublin": (2, True),
        "oregon": (3, False),
    }
    assert [cell.name for cell in cells.allowed("bank")] == ["frankfurt", "dublin"]
    match = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert match is not None
    schema = json.loads((EXAMPLE.parent / match[1]).read_text(encoding="utf-8"))
    validate(yaml.safe_load(text), schema)


def test_page_shows_the_example() -> None:
    page = (ROOT / "docs" / "cells.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(cells:.*?)```", page, re.DOTALL)
    assert EXAMPLE.read_text(encoding="utf-8").endswith(shown)


@pytest.mark.parametrize("path", MAPS, ids=lambda path: path.parent.name)
def test_files_of_the_manifests_are_valid(path: Path) -> None:
    assert len(parse(of_map(path)).cells) == 3


def test_front_and_cells_have_the_same_file() -> None:
    front, cell = map(of_map, MAPS)
    assert front == cell

"""The file of cells: every problem at once, with its line and its fix."""

from __future__ import annotations

import pytest

from lowtide.cells.model import Cell
from lowtide.cells.parsing import parse
from lowtide.core.yaml_files import InvalidFile

TEXT = """\
cells:
  - number: 1
    name: virginia-1
    url: https://virginia-1.example.com/v1/
    region: us-east-1
    unnumbered_ids: true
    portal: https://virginia-1.example.com:8443/portal/
  - {number: 2, name: frankfurt-1, url: "http://frankfurt-1:8080", region: eu-central-1}
tenants:
  bank: {regions: [eu-central-1]}
"""


def test_file_is_read() -> None:
    cells = parse(TEXT)
    assert cells.cells == [
        Cell(
            1,
            "virginia-1",
            "https://virginia-1.example.com",
            "us-east-1",
            unnumbered_ids=True,
            portal="https://virginia-1.example.com:8443/portal",
        ),
        Cell(2, "frankfurt-1", "http://frankfurt-1:8080", "eu-central-1"),
    ]
    assert cells.residency == {"bank": frozenset({"eu-central-1"})}


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("number: 2", "number: 1", "cells.yaml:8: cell 2.number: is that of another cell"),
        ("number: 2", "number: 4096", "cells.yaml:8: cell 2.number: must be less than or equal"),
        ("name: frankfurt-1", "name: virginia-1", "cells.yaml:8: cell 2.name: is that of another"),
        (
            "region: us-east-1",
            "regoin: us-east-1",
            "regoin: is an unknown key; did you mean region",
        ),
        (
            "https://virginia",
            "https://user@virginia",
            "cells.yaml:4: cell 1.url: must have no user",
        ),
        (
            "portal: https:",
            "portal: javascript:",
            "cells.yaml:7: cell 1.portal: must start with http:// or https://",
        ),
        ("[eu-central-1]", "[mars]", "cells.yaml:10: tenants.bank.regions: has no cell in mars"),
        ("unnumbered_ids: true", "token: x", "callers' keys pass through the front"),
    ],
)
def test_problem_names_its_line_and_its_fix(before: str, after: str, problem: str) -> None:
    assert before in TEXT
    with pytest.raises(InvalidFile) as refused:
        parse(TEXT.replace(before, after))
    assert problem in str(refused.value)

"""Names of cells, and the rows of the page of cells."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from lowtide.cells.heartbeats import Heartbeat
from lowtide.cells.model import Cell, Quote, Report
from lowtide.core.ids import ids_of_cell, new_id, now
from lowtide.settings import Settings
from portal.cells import CellNames, KnownCells, SeenCell
from portal.pages.cell_table import health_of, rows_of
from portal.pages.cells import longest_wait

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
NAMES = CellNames(2, {1: "virginia-1", 2: "frankfurt-1"})
LARGE = Quote(["llama-70b"], 0.002, 600, 2.0, "large", 900, 2, 1)
SMALL = Quote(["*"], 0.0001, None, 0.0, "small", 90, 0, 0)


def seen(number: int, report: Report | None, *, last: Report | None = None) -> SeenCell:
    """Return a cell that reports since an hour, or is away since then."""
    cell = Cell(number, f"cell-{number}", "http://x", "us", portal=f"https://portal-{number}")
    since = (NOW - timedelta(hours=1)).timestamp()
    problem = "" if report else "does not answer"
    return SeenCell(Heartbeat(cell, report, since, 0.012, problem), report or last)


@pytest.mark.parametrize(
    ("names", "cell", "origin"),
    [
        pytest.param(NAMES, 1, "virginia-1", id="other"),
        pytest.param(NAMES, 2, "", id="own"),
        pytest.param(NAMES, None, "", id="older than its number"),
        pytest.param(NAMES, 7, "cell 7", id="no longer in the file"),
        pytest.param(CellNames(None, NAMES.names), 1, "", id="no cell"),
    ],
)
def test_object_of_another_cell_names_it(names: CellNames, cell: int | None, origin: str) -> None:
    assert names.origin(ids_of_cell(cell)()) == origin


def test_cell_without_a_file_is_named_by_its_number() -> None:
    assert (NAMES.own_name, CellNames(3).own_name, CellNames().own_name) == (
        "frankfurt-1",
        "cell 3",
        "",
    )
    assert CellNames().origin(new_id()) == ""


def test_cells_are_watched_with_a_file_and_a_token(tmp_path: Path) -> None:
    file = tmp_path / "cells.yaml"
    file.write_text("cells: [{number: 1, name: a, url: 'http://a', region: us}]")
    for settings, name, watched in (
        ({}, "", False),
        ({"cell": 1}, "cell 1", False),
        ({"cell": 1, "cells": str(file)}, "a", False),
        ({"cells_token": "x"}, "", False),
        ({"cells": str(file), "cells_token": "x"}, "", True),
    ):
        known = KnownCells.of(Settings.model_validate(settings), clock=now)
        assert (known.names.own_name, known.watch is not None) == (name, watched)
        if known.watch is not None:
            known.watch.close()


def test_rows_compare_fleets_of_all_cells() -> None:
    cheaper = Quote(["llama-70b"], 0.001, 60, 0.5, "large", 450, 4, 0)
    rows = rows_of(
        [
            seen(1, Report([LARGE, SMALL], "USD", 1)),
            seen(2, Report([cheaper], "USD", 2)),
            seen(3, Report([LARGE], "EUR", 3)),
        ],
        NOW,
        own=2,
    )
    places = [(row["cell"], row["first"], row["last"], row["own"]) for row in rows]
    assert places == [
        ("cell-1", True, False, False),
        ("cell-1", False, True, False),
        ("cell-2", True, True, True),
        ("cell-3", True, True, False),
    ]
    large, small, other, euro = (row["figures"] for row in rows)
    assert large is not None
    assert small is not None
    assert other is not None
    assert euro is not None
    assert large == {
        "fleet": "large",
        "models": "llama-70b",
        "unfinished": "900",
        "unfinished_width": "100.0%",
        "workers": "2 spot · 1 dedicated",
        "parts": [{"tone": "spot", "width": "50.0%"}, {"tone": "dedicated", "width": "25.0%"}],
        "price": "2 USD",
        "price_width": "100.0%",
        "lowest": False,
        "wait": "10 min",
        "wait_width": "100.0%",
        "interruptions": "2 per hour",
        "interruptions_width": "100.0%",
    }
    assert (small["models"], small["workers"], small["wait"], small["interruptions"]) == (
        "any model",
        "none",
        "no capacity",
        "none",
    )
    assert (other["price_width"], other["lowest"], small["lowest"]) == ("50.0%", True, False)
    assert (euro["price_width"], euro["lowest"]) == ("100.0%", False), "another currency"


def test_cell_that_is_away_shows_its_last_figures() -> None:
    known, unknown = rows_of(
        [seen(1, None, last=Report([LARGE], "USD", 1)), seen(2, None)], NOW, own=None
    )
    assert (known["state"]["text"], known["note"], known["stale"]) == (
        "Away",
        "for 1 h: does not answer",
        True,
    )
    assert known["since"] == "Since 2 Jan 2026, 11:00:00 · 2 Jan 2026, 11:00:00 UTC"
    assert known["figures"] is not None
    assert unknown["figures"] is None


def test_lowest_price_is_one_of_a_cell_that_answers() -> None:
    report = Report([LARGE], "USD")
    cheap = Report([Quote(LARGE.models, 0.0001, 1.0)], "USD")
    rows = rows_of(
        [seen(1, None, last=cheap), seen(2, report), seen(3, Report([SMALL, LARGE], "USD"))],
        NOW,
        own=None,
    )
    lowest = [row["figures"]["lowest"] for row in rows if row["figures"]]
    assert lowest == [False, True, False, True]


def test_cell_that_only_finishes_says_so() -> None:
    heartbeat = seen(1, Report([]))
    assert health_of(heartbeat, NOW)[0]["text"] == "Well"
    cell = Cell(1, "a", "http://x", "us", accepts_work=False)
    finishing = SeenCell(Heartbeat(cell, Report([]), 0.0, 0.012), Report([]))
    badge, note = health_of(finishing, NOW)
    assert (badge["text"], note) == ("Finishing", "takes no new work, answers in 12 ms")


def test_longest_wait_is_that_of_work_without_capacity() -> None:
    idle = Quote(["*"], 0.1, None)
    assert longest_wait([("a", LARGE), ("b", idle)]) == ("10 min", "in a", False)
    assert longest_wait([("a", LARGE), ("c", SMALL)]) == ("No capacity", "in c", True)
    assert longest_wait([("b", idle)]) == ("—", "", False)

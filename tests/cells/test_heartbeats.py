"""Heartbeats: which cells are well, and that one that hangs hides none."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lowtide.cells.heartbeats import Heartbeats
from lowtide.cells.model import Cell
from lowtide.cells.upstream import Upstream
from tests.cells.stubs import TOKEN, Stub
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    cells = [Stub(number) for number in (1, 2)]
    yield cells
    for cell in cells:
        cell.stop()


@pytest.fixture
def heartbeats(stubs: list[Stub]) -> Iterator[Heartbeats]:
    upstream = Upstream()
    cells = [Cell(stub.number, f"cell-{stub.number}", stub.url, "eu") for stub in stubs]
    asked = Heartbeats(cells, upstream, TOKEN)
    yield asked
    asked.stop()
    upstream.close()


def test_cell_that_hangs_hides_no_other(heartbeats: Heartbeats, stubs: list[Stub]) -> None:
    stubs[0].delay = 3.0
    asking = threading.Thread(target=heartbeats.ask)
    asking.start()
    until(lambda: set(heartbeats.reports()) == {2}, "the other is well", within=1.5)
    assert [state.cell.number for state in heartbeats.states()] == [2]
    asking.join()
    away, well = heartbeats.states()
    assert (away.cell.number, away.report) == (1, None)
    assert "does not answer" in away.problem
    assert well.report is not None


def test_cell_is_away_while_it_is_another_or_refuses(
    heartbeats: Heartbeats, stubs: list[Stub]
) -> None:
    stubs[0].report = replace(stubs[0].report, cell=7)
    stubs[1].status = 401
    other, refused = heartbeats.ask()
    assert "LOWTIDE_CELL is 7, not 1" in other.problem
    assert "LOWTIDE_CELLS_TOKEN" in refused.problem
    assert heartbeats.reports() == {}
    stubs[0].report, stubs[1].status = replace(stubs[0].report, cell=1), None
    first, _ = heartbeats.ask()
    assert set(heartbeats.reports()) == {1, 2}
    again, _ = heartbeats.ask()
    assert again.since == first.since

"""The cells that a portal knows: the names for its lists, and their heartbeats for its page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from lowtide.cells.heartbeats import Heartbeats
from lowtide.cells.parsing import read_file
from lowtide.cells.upstream import Upstream
from lowtide.core.ids import cell_of
from lowtide.status.concerns import Concern

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from lowtide.cells.heartbeats import Heartbeat
    from lowtide.cells.model import Cell, Report
    from lowtide.settings import Settings


PATH: Final = "/cells"


@dataclass(frozen=True, slots=True)
class CellNames:
    """The number of this installation's cell, None if it is none, and the names of cells by number."""

    own: int | None = None
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def own_name(self) -> str:
        """The name of this cell; empty if this installation is none."""
        return "" if self.own is None else self._name(self.own)

    def origin(self, id_: UUID) -> str:
        """Return the name of the other cell that an object was evacuated from; empty for own objects.

        Not for ids of output files: one that was derived from an id without a cell may have a number
        by chance.
        """
        number = None if self.own is None else cell_of(id_)
        return "" if number is None or number == self.own else self._name(number)

    def _name(self, number: int) -> str:
        return self.names.get(number) or f"cell {number}"


@dataclass(frozen=True, slots=True)
class SeenCell:
    """The state of a cell, and the last report that it sent; None before its first."""

    heartbeat: Heartbeat
    report: Report | None

    @property
    def is_away(self) -> bool:
        """True if the cell did not answer the last time it was asked."""
        return self.heartbeat.report is None


class CellWatch:
    """The heartbeats of all cells, read by the poller for all pages."""

    def __init__(self, cells: Sequence[Cell], token: str, *, clock: Callable[[], datetime]) -> None:
        self._upstream = Upstream()
        self._heartbeats = Heartbeats(cells, self._upstream, token)
        self._clock = clock
        self.seen: Sequence[SeenCell] = ()
        self.looked_at: datetime | None = None

    def look(self) -> None:
        """Ask all cells once."""
        last = {each.heartbeat.cell.number: each.report for each in self.seen}
        self.seen = [
            SeenCell(state, state.report or last.get(state.cell.number))
            for state in self._heartbeats.ask()
        ]
        self.looked_at = self._clock()

    def close(self) -> None:
        """Ask no more, and close the connections."""
        self._heartbeats.stop()
        self._upstream.close()

    def concerns(self) -> tuple[Concern, ...]:
        """Return a concern for each cell that is away."""
        return tuple(
            Concern(f"Cell {each.heartbeat.cell.name}: {each.heartbeat.problem}", PATH)
            for each in self.seen
            if each.is_away
        )


@dataclass(frozen=True, slots=True)
class KnownCells:
    """The names of cells, and the watch of them; None unless the settings name cells and a token."""

    names: CellNames
    watch: CellWatch | None

    @classmethod
    def of(cls, settings: Settings, *, clock: Callable[[], datetime]) -> Self:
        """Read the file of cells, if there is one; raises InvalidFile."""
        cells = read_file(Path(settings.cells)).cells if settings.cells else ()
        names = {cell.number: cell.name for cell in cells}
        token = settings.cells_token.get_secret_value()
        watch = CellWatch(cells, token, clock=clock) if cells and token else None
        return cls(CellNames(settings.cell, names), watch)

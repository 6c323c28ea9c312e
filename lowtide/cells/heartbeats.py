"""Heartbeats: what each cell last reported, and since when one is away."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client import Gauge

from lowtide.cells.model import HEARTBEAT_PATH, Report
from lowtide.cells.upstream import Question

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lowtide.cells.model import Cell
    from lowtide.cells.upstream import Upstream


_log = logging.getLogger(__name__)
INTERVAL: Final = 1.0
_ANSWER_SECONDS: Final = 2.0
_AT_ONCE: Final = 128
_UP = Gauge("lowtide_cell_up", "1 if the cell answered the last heartbeat, else 0.", ["name"])


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last answer of a cell: its report, None if it is away, and why.

    `since` is when this state began, and `seconds` how long the answer took.
    """

    cell: Cell
    report: Report | None
    since: float
    seconds: float = 0.0
    problem: str = ""


class Heartbeats:
    """Ask all cells for their reports, every second in a thread once it is started."""

    def __init__(
        self,
        cells: Sequence[Cell],
        upstream: Upstream,
        token: str,
        *,
        timer: Callable[[], float] = time.time,
    ) -> None:
        self._cells = cells
        self._upstream = upstream
        self._question = Question("GET", HEARTBEAT_PATH, b"", {"Authorization": f"Bearer {token}"})
        self._timer = timer
        self._states: dict[int, Heartbeat] = {}
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(min(len(cells), _AT_ONCE), thread_name_prefix="heartbeats")

    def start(self) -> None:
        """Ask once, then again and again in a thread."""
        self.ask()
        threading.Thread(target=self._run, daemon=True, name="heartbeats").start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ask(self) -> Sequence[Heartbeat]:
        """Ask all cells now; return their states in the order of the cells.

        Each state is visible at once: cells that hang delay no other's.
        """
        return list(self._pool.map(self._ask, self._cells))

    def states(self) -> Sequence[Heartbeat]:
        """Return the last states in the order of the cells."""
        states = (self._states.get(cell.number) for cell in self._cells)
        return [state for state in states if state is not None]

    def reports(self) -> Mapping[int, Report]:
        """Return the reports of the cells that answer, by number."""
        return {
            state.cell.number: state.report for state in self.states() if state.report is not None
        }

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self.ask()
            except Exception:  # noqa: BLE001 - without this loop, every cell would seem as it is now
                if self._stopped.is_set():
                    return
                _log.exception("heartbeats.failed")

    def _ask(self, cell: Cell) -> Heartbeat:
        start = self._timer()
        answer = self._upstream.ask(cell, self._question, _ANSWER_SECONDS)
        report, problem = None, "does not answer"
        if answer is not None and answer.status == 200:
            try:
                report = msgspec.json.decode(answer.content, type=Report)
                problem = ""
            except msgspec.DecodeError:
                problem = "answers with something else than a heartbeat: check its address"
        elif answer is not None:
            problem = f"answers {answer.status}: check LOWTIDE_CELL and LOWTIDE_CELLS_TOKEN there"
        if report is not None and report.cell != cell.number:
            problem = f"says that its LOWTIDE_CELL is {report.cell}, not {cell.number}"
            report = None
        return self._noted(cell, report, problem, start)

    def _noted(self, cell: Cell, report: Report | None, problem: str, start: float) -> Heartbeat:
        _UP.labels(cell.name).set(report is not None)
        last = self._states.get(cell.number)
        changed = last is None or (last.report is None) != (report is None)
        if changed and report is None:
            _log.warning("cell.away", extra={"cell": cell.name, "problem": problem})
        elif changed:
            _log.info("cell.well", extra={"cell": cell.name})
        now = self._timer()
        since = now if last is None or changed else last.since
        state = self._states[cell.number] = Heartbeat(cell, report, since, now - start, problem)
        return state

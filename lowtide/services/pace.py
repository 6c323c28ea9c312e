"""How fast a worker is when it is full, and which part of its time each line has."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from lowtide.domain.rates import Sample

if TYPE_CHECKING:
    from collections.abc import Callable


class Pace:
    """Counts lines that end while at least `full` are in hand, and the time of that.

    With fewer a worker could have done more, and what it did says nothing about its rate.

    `share` grows by each second in which anything is in hand, divided by the lines in hand: what it
    grew by while a line was there is the line's part of that time, and all parts together are it.
    """

    def __init__(self, full: int, timer: Callable[[], float] = monotonic) -> None:
        self._full = full
        self._timer = timer
        self.restart()

    def restart(self) -> None:
        """Begin a new lease: nothing is in hand, nothing has been counted."""
        self._in_hand = self._lines = 0
        self._seconds = 0.0
        self.share = 0.0
        self._since = self._timer()

    def took(self, lines: int) -> float:
        """Count lines that came into the worker's hands; return the share they start from."""
        self._pass_time()
        self._in_hand += lines
        return self.share

    def ended(self, lines: int) -> float:
        """Count lines that left them, in success or failure; return the share they end at."""
        self._pass_time()
        if self._in_hand >= self._full:
            self._lines += lines
        self._in_hand = max(0, self._in_hand - lines)
        return self.share

    def total(self) -> Sample:
        """Return what was counted under this lease."""
        self._pass_time()
        return Sample(self._lines, self._seconds)

    def _pass_time(self) -> None:
        now = self._timer()
        if self._in_hand >= self._full:
            self._seconds += now - self._since
        if self._in_hand:
            self.share += (now - self._since) / self._in_hand
        self._since = now

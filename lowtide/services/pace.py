"""How fast a worker is when it is full, and which part of its time each line has."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from lowtide.domain.rates import Sample

if TYPE_CHECKING:
    from collections.abc import Callable


class Pace:
    """Counts requests that run to an end while at least `full` are in hand, and the time of that.

    With fewer a worker could have done more, and what it did says nothing about its rate. Nor does
    the time until the first ones end: it counts from when as many have ended as run at a time.

    `share` grows by each second in which anything is in hand, divided by the lines in hand: what it
    grew by while a line was there is the line's part of that time, and all parts together are it.
    """

    def __init__(self, full: int, timer: Callable[[], float] = monotonic) -> None:
        self._full = full
        self._timer = timer
        self.restart()

    def restart(self) -> None:
        """Begin a new lease: nothing is in hand, nothing has been counted."""
        self._in_hand = self._turned_over = self._lines = 0
        self._seconds = 0.0
        self.share = 0.0
        self._since = self._timer()

    def took(self, lines: int) -> float:
        """Count lines that came into the worker's hands; return the share they start from."""
        self._pass_time()
        if self._in_hand == 0:
            self._turned_over = 0
        self._in_hand += lines
        return self.share

    def left(self, lines: int, *, ran: int) -> float:
        """Count lines that left them, and how many of them `ran` to an end, in success or failure.

        Return the share they end at. What was given back, or failed for the engine's sake, says
        nothing of how fast the worker is.
        """
        self._pass_time()
        if self._counts:
            self._lines += ran
        self._turned_over += ran
        self._in_hand = max(0, self._in_hand - lines)
        return self.share

    def total(self) -> Sample:
        """Return what was counted under this lease."""
        self._pass_time()
        return Sample(self._lines, self._seconds)

    @property
    def _counts(self) -> bool:
        return self._in_hand >= self._full and self._turned_over >= self._full

    def _pass_time(self) -> None:
        now = self._timer()
        if self._counts:
            self._seconds += now - self._since
        if self._in_hand:
            self.share += (now - self._since) / self._in_hand
        self._since = now

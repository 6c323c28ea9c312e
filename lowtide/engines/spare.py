"""The spare capacity of an engine that also serves online traffic: pure, as the search.

Additive increase, multiplicative decrease, once per tick: the limit grows by a step while nothing
waits in the engine and the mean time to first token is under its target, and shrinks otherwise. The
engine reports both for all of its clients, so the limit follows online traffic that the worker
does not see.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lowtide.engines.load import EngineLoad, FirstTokens, Interval


_STEPS: Final = 128
"""Ticks from none to the most: two minutes, in which online traffic hardly notices a step."""
_FULL: Final = 0.85
"""Share of the limit that is in flight while there is enough work: else it does not grow."""
_LEAST: Final = 0.5
_MOST: Final = 0.95
"""Bounds of the factor of a decrease."""
_ROOM: Final = 15 / 16
"""Share of the places that its requests have in a full batch that the worker keeps."""
_ENOUGH: Final = 64
_LONGEST: Final = 5
"""First tokens whose mean is judged, and the ticks after which fewer are."""


class SpareConcurrency:
    """Keeps the limit on requests in flight at what online traffic leaves, between 1 and `most`.

    `target` is the mean time to first token in seconds to stay under; without one, or from an engine
    that does not report it, the engine's queue decides alone. An engine that reports no load at all
    gets one request at a time: what it has to spare is unknown.
    """

    needs_load = True

    def __init__(self, most: int, target: float | None) -> None:
        self._most = most
        self._target = target
        self._step = math.ceil(most / _STEPS)
        self.restart()

    def restart(self) -> None:
        """Begin at one step: the engine may be another one."""
        self.limit = self._step
        self.is_settled = False
        self._since: FirstTokens | None = None
        self._ticks = 0

    def observe(
        self,
        now: float,  # noqa: ARG002
        interval: Interval,
        load: EngineLoad | None,
    ) -> None:
        """Adapt the limit to the last tick; `load` is None if the engine does not report it."""
        if load is None:
            self._since = None
            self._set(1)
            return
        excess = self._excess(interval, load.first_tokens)
        if load.waiting:
            # Others' requests wait, too, and their share of the batch is not the worker's.
            own = interval.at_end * load.running / (load.running + load.waiting)
            self._shrink(min(self.limit, math.floor(_ROOM * own)))
        elif excess is None:
            return
        elif excess > 1:
            self._shrink(math.floor(self.limit * min(_MOST, max(_LEAST, 1 / excess))))
        elif interval.at_end >= _FULL * self.limit:
            self.limit = min(self._most, self.limit + self._step)
            self.is_settled = self.is_settled or self.limit == self._most

    def refused(self, now: float) -> None:  # noqa: ARG002
        """Halve the limit."""
        self._shrink(self.limit // 2)

    def _shrink(self, limit: int) -> None:
        self._set(limit)
        self._since = None

    def _set(self, limit: int) -> None:
        self.limit = max(1, limit)
        self.is_settled = True

    def _excess(self, interval: Interval, reported: FirstTokens | None) -> float | None:
        """Return the mean time to first token as a multiple of its target, once it is measured.

        0 if there is no target or no report; None while there are too few first tokens, or more
        requests in flight than the limit: those of a larger one have to end first.
        """
        if self._target is None or reported is None:
            return 0.0
        since = self._since
        is_above = interval.at_end > self.limit
        if since is None or is_above or reported.count < since.count:
            self._since, self._ticks = reported, 0
            return None
        self._ticks += 1
        count = reported.count - since.count
        if count < _ENOUGH and self._ticks < _LONGEST:
            return None
        self._since, self._ticks = reported, 0
        return (reported.seconds - since.seconds) / count / self._target if count else 0.0

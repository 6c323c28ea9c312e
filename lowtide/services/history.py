"""What pools did, read once for all who look."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.domain.history import History, HistoryRange
    from lowtide.ports import HistorySource

SERVES_SECONDS: Final = 10.0
"""Samples come once a minute: however often pages look, that often is enough."""


class HistoryBook:
    """Reads ranges of history; a reading serves everybody for 10 s."""

    def __init__(
        self, source: HistorySource, *, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._timer = timer
        self._read: dict[HistoryRange, tuple[float, History]] = {}

    def read(self, wanted: HistoryRange) -> History:
        """Return what pools did over a range; raises Unavailable."""
        now = self._timer()
        known = self._read.get(wanted)
        if known is None or now - known[0] >= SERVES_SECONDS:
            known = self._read[wanted] = now, self._source.read(wanted)
        return known[1]

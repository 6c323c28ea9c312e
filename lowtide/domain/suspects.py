"""Requests that a proxy answers for again and again, while its engine answers others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lowtide.domain.ids import BatchId

BLAMED: Final = 16
"""From this fault in a row on, each with a success of others since the last, it is the request's own.
With the attempts that follow, a proxy that fails every second time ends one request in a million."""
_MOST: Final = 4096


class Suspects:
    """Faults in a row by request, the latest last; times in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[tuple[BatchId, int], tuple[int, float]] = {}

    def blames(self, request: tuple[BatchId, int], now: float, last_success: float) -> bool:
        """Count a fault; return whether the request is at fault rather than its engine."""
        faults, at = self._seen.pop(request, (0, -math.inf))
        is_another = last_success > at
        self._seen[request] = (faults + is_another, now if is_another else at)
        if len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]
        return is_another and faults + 1 >= BLAMED

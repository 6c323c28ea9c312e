"""What pools did so far: samples taken and read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.domain.history import History, HistoryRange, PoolLevel
    from lowtide.domain.pools import Pool


class HistoryRecorder(Protocol):
    """What takes samples."""

    def record(self, levels: Mapping[Pool, PoolLevel], *, kept: float) -> bool:
        """Take this minute's sample, unless it is there; tell whether it was taken.

        Drops some of those that are older than `kept` seconds.
        """
        ...


class HistorySource(Protocol):
    """Where samples are read."""

    def read(self, wanted: HistoryRange) -> History:
        """Return what pools did over a range until now; raises Unavailable."""
        ...

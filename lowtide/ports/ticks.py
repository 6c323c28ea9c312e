"""What the scheduler needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from lowtide.domain.escalation import Move, OpenBatch
    from lowtide.domain.events import Event
    from lowtide.domain.ids import BatchId
    from lowtide.domain.pools import Depth, Pool


class Ticks(Protocol):
    """What one tick of the scheduler reads and changes. Everything may run twice at once."""

    def snapshot(self) -> tuple[datetime | None, Sequence[OpenBatch]]:
        """Return the database's time and the batches with open lines; no time without batches."""
        ...

    def escalate(self, escalations: Sequence[Move]) -> Sequence[Event]:
        """Move lines to dedicated; return the recorded events that wake its workers."""
        ...

    def mark_at_risk(self, batches: frozenset[BatchId]) -> None:
        """Make exactly these running batches at risk."""
        ...

    def sweep(self, *, cancel_grace: float, stalled_after: float) -> int:
        """Give expired leases back, end what is due, announce again what stalled.

        Times in seconds. Returns how many lines of expired leases were given back.
        """
        ...

    def strays(self, limit: int) -> Sequence[str]:
        """Forget expired files; return keys of objects that belong to no file (any more)."""
        ...

    def forget_strays(self, keys: Sequence[str]) -> None:
        """Note that these objects are gone."""
        ...

    def depths(self) -> Mapping[Pool, Depth]:
        """Return how much waits and runs in each pool."""
        ...

"""Whether a new batch's window can be promised, whatever spot does."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.demand import Capacity, Demand


@dataclass(frozen=True, slots=True)
class Admission:
    """The verdict on a new batch.

    `held`: dedicated capacity alone makes its deadline and takes no other batch's. Otherwise it is
    at risk from the start; `earliest` is the first deadline that would be held (None: no dedicated
    capacity, or none before the end of time).
    """

    held: bool
    earliest: datetime | None


def admit(new: Demand, others: Sequence[Demand], now: datetime, capacity: Capacity) -> Admission:
    """Judge a new batch beside all open ones, from a standing start: O(n log n).

    Batches that are at risk already get nothing ahead of them either.

        >>> verdict = admit(Demand(deadline, lines), open_demand, now, capacity)
        >>> verdict.held or verdict.earliest
    """
    if new.lines <= 0:
        return Admission(held=True, earliest=now)
    if capacity.speed <= 0:
        return Admission(held=False, earliest=None)
    ordered = sorted(others, key=lambda other: other.deadline)
    starts = now + timedelta(seconds=capacity.cold_start + capacity.lost)
    demand = 0
    ahead = 0
    first = now
    # The last batch without room for the new lines before it: they can only come behind.
    position = 0
    for number, other in enumerate(ordered, 1):
        demand += other.lines
        room = capacity.speed * max((other.deadline - starts).total_seconds(), 0.0)
        if demand + new.lines > room:
            position, ahead, first = number, demand, other.deadline
    for other in ordered[position:]:
        if (end := _after(starts, ahead + new.lines, capacity)) is not None and (
            end < other.deadline
        ):
            break
        ahead += other.lines
        first = other.deadline
    end = _after(starts, ahead + new.lines, capacity)
    earliest = None if end is None else max(end, first)
    return Admission(held=earliest is not None and earliest <= new.deadline, earliest=earliest)


def _after(starts: datetime, lines: int, capacity: Capacity) -> datetime | None:
    """Return when all replicas have run `lines`; None behind the calendar's end."""
    try:
        return starts + timedelta(seconds=lines / capacity.speed)
    except OverflowError:
        return None

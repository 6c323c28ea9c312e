"""The order of work on spot: urgency by deadline, and the priorities of a tenant's batches.

A tenant's batches are served by deadline, and by priority where their deadlines hold. They hold
while dedicated could end twice the work that is due by then, from the next tick on and cold: so
nothing has to run for them before that tick, and spot has as much time left to end the work as
dedicated takes. The other deadlines are tight, and barriers: what is due by one comes before what
is due later, whatever its priority (docs/adr/0029-priorities.md).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from lowtide.core.ids import BatchId
    from lowtide.planning.escalation import OpenBatch


URGENCY_EDGES: Final = (900.0, 3600.0, 14_400.0, 86_400.0)
"""Seconds until a deadline that separate levels of urgency: 15 minutes, 1, 4 and 24 hours."""
MIN_PRIORITY: Final = -10
MAX_PRIORITY: Final = 10


def spot_urgency(left: float, *, at_risk: bool) -> float:
    """Return the urgency on spot of a batch that is due in `left` seconds; smaller is more urgent."""
    return 0.0 if at_risk else float(bisect_left(URGENCY_EDGES, left))


class Queued(Protocol):
    """A batch that waits for spot: `left` and `barrier` are seconds until its deadline and barrier."""

    @property
    def left(self) -> float: ...
    @property
    def at_risk(self) -> bool: ...
    @property
    def priority(self) -> int: ...
    @property
    def barrier(self) -> float: ...


_Queued = TypeVar("_Queued", bound=Queued)


def own_order(batches: Iterable[_Queued]) -> list[tuple[float, _Queued]]:
    """Return the batches of one tenant in the order of its turns, each with its urgency.

    The most urgent level comes first, by deadline; the rest by barrier, priority and deadline. A batch
    is no more urgent than the one before it: a tenant's priorities delay its own work alone.
    """
    ordered = sorted(batches, key=_place)
    levels = accumulate((spot_urgency(batch.left, at_risk=batch.at_risk) for batch in ordered), max)
    return list(zip(levels, ordered, strict=True))


def _place(batch: Queued) -> tuple[float, int, float]:
    if spot_urgency(batch.left, at_risk=batch.at_risk) == 0:
        return -math.inf, 0, batch.left
    return batch.barrier, -batch.priority, batch.left


def changed_barriers(
    fleets: Iterable[tuple[Sequence[OpenBatch], Sequence[datetime]]],
) -> dict[BatchId, datetime | None]:
    """Return the batches whose barrier has changed, given each fleet's open batches and tight deadlines.

    The barrier of a batch is the first tight deadline from its own on, of any fleet that runs it.
    Batches of tenants without a priority have none.
    """
    known: dict[BatchId, datetime | None] = {}
    wanted: dict[BatchId, datetime | None] = {}
    for batches, tight in fleets:
        tenants = {batch.tenant for batch in batches if batch.priority}
        for batch in batches:
            if batch.tenant not in tenants and batch.barrier is None:
                continue
            known[batch.id] = batch.barrier
            position = bisect_left(tight, batch.deadline)
            is_held = batch.tenant in tenants and position < len(tight)
            of_fleets = (wanted.get(batch.id), tight[position] if is_held else None)
            wanted[batch.id] = min((each for each in of_fleets if each is not None), default=None)
    return {batch: barrier for batch, barrier in wanted.items() if barrier != known[batch]}

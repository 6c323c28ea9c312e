"""Fallback: requests whose deadline a fleet cannot hold move to another fleet that can run them.

Let open_k and room_k be the bound of a batch at risk (lowtide.planning.escalation): of the requests
due by its deadline, open_k - room_k would be late. As many of those that wait, the batch's own last,
move to the fallback's dedicated pool, but only as many as it can add without putting a batch of its
own at risk. A fallback promises nothing to others at the expense of what it has promised.

A fleet that promises nothing at all (its dedicated pool is paused, has no engine or no replicas) may
still be in time by spot. Of its requests, only those move that the fallback would now escalate if they
waited for its own spot: as late as is safe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lowtide.core.pools import Pool
from lowtide.planning.escalation import OpenBatch, plan_tick
from lowtide.planning.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lowtide.core.ids import BatchId
    from lowtide.planning.demand import Capacity
    from lowtide.planning.escalation import Plan
    from lowtide.planning.state import SchedulerState


@dataclass(frozen=True, slots=True)
class FleetMove:
    """A move of `lines` waiting requests of a batch to the dedicated pool of another fleet."""

    batch: BatchId
    source: str
    target: str
    lines: int


def fall_back(
    states: Mapping[str, SchedulerState],
    plans: Mapping[str, Plan],
    capacities: Mapping[str, Capacity],
    fallbacks: Mapping[str, str],
) -> list[FleetMove]:
    """Return the moves between fleets; `fallbacks` maps a fleet to the one that stands in for it."""
    moves: list[FleetMove] = []
    taken: dict[str, list[OpenBatch]] = {}
    for source, target in fallbacks.items():
        if source not in states or target not in states or not plans[source].at_risk:
            continue
        host = _Host(states[target], capacities[target], taken.setdefault(target, []))
        moved = 0
        for batch in sorted(states[source].batches, key=lambda each: (each.deadline, each.id)):
            bound = plans[source].bounds.get(batch.id)
            # The fleets of requests that are not split yet are settled with their segment.
            if bound is None or batch.unsplit:
                continue
            late = min(bound.open - bound.capacity - moved, batch.spot + batch.dedicated)
            if plans[source].risk is not Reason.DEADLINE_BOUND:
                late = host.due(batch, late)
            lines = host.accept(batch, late)
            if lines > 0:
                moves.append(FleetMove(batch.id, source, target, lines))
                moved += lines
    return moves


class _Host:
    """A fleet that takes over requests of others, besides those already `taken`."""

    def __init__(self, state: SchedulerState, capacity: Capacity, taken: list[OpenBatch]) -> None:
        self._state = state
        self._capacity = state.measured(capacity)
        self._starts = state.starts(capacity.cold_start)
        self._is_idle = Pool.DEDICATED in state.idle or self._capacity.replicas <= 0
        self._taken = taken

    def due(self, batch: OpenBatch, lines: int) -> int:
        """Return how many of `lines` requests must start here now to be in time."""
        waiting = OpenBatch(batch.id, batch.deadline, spot=lines)
        escalations = self._plan([*self._taken, waiting]).escalations
        return min(lines, sum(move.lines for move in escalations if move.batch == batch.id))

    def accept(self, batch: OpenBatch, lines: int) -> int:
        """Take over up to `lines` requests of a batch; return how many fit.

        A fleet that is late itself takes none: they would make its own batches later still.
        """
        if self._is_idle or lines <= 0 or self._at_risk(self._taken):
            return 0
        fits, too_many = 0, lines + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self._at_risk([*self._taken, _part(batch, middle)]):
                too_many = middle
            else:
                fits = middle
        if fits:
            self._taken.append(_part(batch, fits))
        return fits

    def _at_risk(self, extra: Iterable[OpenBatch]) -> frozenset[BatchId]:
        return self._plan(extra).at_risk

    def _plan(self, extra: Iterable[OpenBatch]) -> Plan:
        batches = _merged([*self._state.batches, *extra])
        return plan_tick(batches, self._state.now, self._capacity, self._starts)


def _part(batch: OpenBatch, lines: int) -> OpenBatch:
    return OpenBatch(batch.id, batch.deadline, spot=0, dedicated=lines, pinned=batch.pinned)


def _merged(batches: Sequence[OpenBatch]) -> list[OpenBatch]:
    """Return the batches with one entry each: a fallback may run a part of the same batch already."""
    by_id: dict[BatchId, OpenBatch] = {}
    for batch in batches:
        known = by_id.get(batch.id)
        by_id[batch.id] = (
            batch
            if known is None
            else replace(
                known, spot=known.spot + batch.spot, dedicated=known.dedicated + batch.dedicated
            )
        )
    return list(by_id.values())

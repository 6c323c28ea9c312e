"""Fallback: requests whose deadline a fleet cannot hold move to another fleet that can run them.

Let open_k and room_k be the bound of a batch at risk (lowtide.planning.escalation): of the requests
due by its deadline, open_k - room_k would be late. As many of those that wait, the batch's own last,
move to the fallback's dedicated pool, but only as many as its own bound leaves there: until its next
tick it runs the replicas that it has just planned, so that room_k is that of these, and all others
start a tick later. A fallback promises nothing to others at the expense of what it has promised.

A fleet that promises nothing at all (its dedicated pool is paused, has no engine or no replicas) may
still be in time by spot. Its requests wait as long as the fallback could still take all of them at the
next tick, even with no replica on by then; otherwise they move, up to the last deadline for which it
could not.
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
        state = states[source]
        joined = taken.setdefault(target, [])
        host = _Host(states[target], plans[target], capacities[target], joined)
        if plans[source].risk is Reason.DEADLINE_BOUND:
            late = _late(state, capacities[source])
        else:
            late = host.due(state.batches)
        moved = 0
        for batch in sorted(state.batches, key=lambda each: (each.deadline, each.id)):
            # The fleets of requests that are not split yet are settled with their segment.
            if batch.unsplit:
                continue
            waiting = batch.spot + batch.dedicated
            lines = host.accept(batch, min(late.get(batch.id, 0) - moved, waiting))
            if lines > 0:
                moves.append(FleetMove(batch.id, source, target, lines))
                moved += lines
    return moves


def _late(state: SchedulerState, capacity: Capacity) -> dict[BatchId, int]:
    """Return how many of the requests due by each batch's deadline would be late."""
    measured = _exact(state.measured(capacity))
    starts = state.starts(capacity.cold_start)
    bounds = plan_tick(state.batches, state.now, measured, starts).bounds
    return {batch: bound.open - bound.capacity for batch, bound in bounds.items()}


def _exact(capacity: Capacity) -> Capacity:
    """Return the capacity with the time of half-done requests in its margin.

    An alarm does without it, a promise does not.
    """
    return replace(capacity, margin=capacity.lost)


class _Host:
    """A fleet that takes over requests of others, besides those already `taken`."""

    def __init__(
        self, state: SchedulerState, plan: Plan, capacity: Capacity, taken: list[OpenBatch]
    ) -> None:
        measured = _exact(state.measured(capacity))
        self._state = state
        self._after_tick = replace(measured, cold_start=measured.cold_start + measured.tick)
        known = state.starts(capacity.cold_start)
        cold = [capacity.cold_start] * (plan.replicas - len(known))
        self._starts = sorted([*known, *cold])[: plan.replicas]
        self._is_full = Pool.DEDICATED in state.idle or measured.replicas <= 0 or bool(plan.at_risk)
        self._taken = taken

    def due(self, waiting: Sequence[OpenBatch]) -> dict[BatchId, int]:
        """Return how many requests, up to each batch's deadline, cannot wait for the next tick."""
        capacity = replace(
            self._after_tick, cold_start=self._after_tick.cold_start + self._after_tick.tick
        )
        batches = _merged([*self._state.batches, *self._taken, *waiting])
        at_risk = plan_tick(batches, self._state.now, capacity).at_risk
        last = max((each.deadline for each in batches if each.id in at_risk), default=None)
        due: dict[BatchId, int] = {}
        lines = 0
        for batch in sorted(waiting, key=lambda each: (each.deadline, each.id)):
            if last is not None and batch.deadline <= last:
                lines += batch.open
                due[batch.id] = lines
        return due

    def accept(self, batch: OpenBatch, lines: int) -> int:
        """Take over up to `lines` requests of a batch; return how many fit.

        A fleet that is late itself takes none: they would make its own batches later still.
        """
        if self._is_full or lines <= 0:
            return 0
        fits, too_many = 0, lines + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self._holds(batch, middle):
                fits = middle
            else:
                too_many = middle
        if fits:
            self._taken.append(_part(batch, fits))
        return fits

    def _holds(self, batch: OpenBatch, lines: int) -> bool:
        """Return whether the bound holds with `lines` more, for all deadlines that they count in."""
        batches = _merged([*self._state.batches, *self._taken, _part(batch, lines)])
        plan = plan_tick(batches, self._state.now, self._after_tick, self._starts)
        return not any(
            each.id in plan.at_risk and each.deadline >= batch.deadline for each in batches
        )


def _part(batch: OpenBatch, lines: int) -> OpenBatch:
    return OpenBatch(batch.id, batch.deadline, spot=0, dedicated=lines, pinned=batch.pinned)


def _merged(batches: Iterable[OpenBatch]) -> list[OpenBatch]:
    """Return the batches with one entry each: a fallback may run a part of the same batch already."""
    by_id: dict[BatchId, OpenBatch] = {}
    for batch in batches:
        known = by_id.get(batch.id)
        by_id[batch.id] = (
            batch
            if known is None
            else replace(
                known,
                spot=known.spot + batch.spot,
                running_spot=known.running_spot + batch.running_spot,
                dedicated=known.dedicated + batch.dedicated,
                running_dedicated=known.running_dedicated + batch.running_dedicated,
                unsplit=known.unsplit + batch.unsplit,
            )
        )
    return list(by_id.values())

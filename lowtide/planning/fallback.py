"""Fallback: requests whose deadline a fleet cannot hold move to another fleet that can run them.

Let open_k and room_k be the bound of a batch at risk (lowtide.planning.escalation): of the requests
due by its deadline, open_k - room_k would be late. As many of those that wait, the batch's own last,
move to the fallback's dedicated pool, but only as many as its own bound leaves there: until its next
tick it runs the replicas that it has just planned, so that room_k is that of these, and all others
start a tick later. A fallback promises nothing to others at the expense of what it has promised.

A fleet that promises nothing at all (its dedicated pool is paused, has no engine or no replicas) may
still be in time by spot. Its requests wait as long as the fallback could still take all of them at the
next tick, beside those of all others that wait for it like that, even with no replica on by then;
otherwise they move, up to the last deadline for which it could not. If spot runs nothing either, they
move at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lowtide.core.pools import Pool
from lowtide.planning.escalation import OpenBatch, SpareRoom, plan_tick
from lowtide.planning.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    """Return the moves between fleets; `fallbacks` maps a fleet to the one that stands in for it.

    O(n log n) for n open batches.
    """
    moves: list[FleetMove] = []
    hosts: dict[str, _Host] = {}
    pairs = [
        (source, target)
        for source, target in fallbacks.items()
        if source in states and target in states and plans[source].at_risk
    ]
    for source, target in pairs:
        if target not in hosts:
            hosts[target] = _Host(states[target], plans[target], capacities[target])
        if plans[source].risk is not Reason.DEADLINE_BOUND:
            hosts[target].waiting.append(states[source])
    for source, target in pairs:
        state, host = states[source], hosts[target]
        promises = plans[source].risk is Reason.DEADLINE_BOUND
        late = _late(state, capacities[source]) if promises else host.due(state)
        spare = host.spare(state.models)
        moved = 0
        for batch in sorted(state.batches, key=lambda each: (each.deadline, each.id)):
            # The fleets of requests that are not split yet are settled with their segment.
            if batch.unsplit:
                continue
            # What joined so far is due earlier, so that it counts in all of these deadlines.
            room = 0 if spare is None else spare.by(batch.deadline) - moved
            lines = min(late.get(batch.id, 0) - moved, batch.spot + batch.dedicated, room)
            if lines > 0:
                moves.append(FleetMove(batch.id, source, target, lines))
                host.join(state.models, batch, lines)
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
    """A fleet that takes over requests of others; `waiting` ones promise nothing themselves."""

    def __init__(self, state: SchedulerState, plan: Plan, capacity: Capacity) -> None:
        self.waiting: list[SchedulerState] = []
        self._state = state
        self._capacity = capacity
        self._joined: list[OpenBatch] = []
        known = state.starts(capacity.cold_start)
        cold = [capacity.cold_start] * (plan.replicas - len(known))
        self._starts = sorted([*known, *cold])[: plan.replicas]

    def due(self, source: SchedulerState) -> dict[BatchId, int]:
        """Return how many requests of a source, up to each batch's deadline, cannot wait longer."""
        if Pool.SPOT in source.idle:
            last = max((batch.deadline for batch in source.batches), default=None)
        else:
            models = frozenset[str]().union(*(each.models for each in self.waiting))
            capacity = self._measured(models, ticks=2)
            waiting = [batch for each in self.waiting for batch in each.batches]
            batches = [*self._state.batches, *self._joined, *waiting]
            last = SpareRoom(batches, self._state.now, capacity).last_missed
        due: dict[BatchId, int] = {}
        lines = 0
        for batch in sorted(source.batches, key=lambda each: (each.deadline, each.id)):
            if last is not None and batch.deadline <= last:
                lines += batch.open
                due[batch.id] = lines
        return due

    def spare(self, models: frozenset[str]) -> SpareRoom | None:
        """Return the room for requests of these models; None if the fleet runs nothing."""
        capacity = self._measured(models, ticks=1)
        if capacity.replicas <= 0:
            return None
        batches = [*self._state.batches, *self._joined]
        return SpareRoom(batches, self._state.now, capacity, self._starts)

    def join(self, models: frozenset[str], batch: OpenBatch, lines: int) -> None:
        """Take over requests of a batch."""
        self._state = replace(self._state, models=self._state.models | models)
        self._joined.append(OpenBatch(batch.id, batch.deadline, spot=0, dedicated=lines))

    def _measured(self, models: frozenset[str], *, ticks: int) -> Capacity:
        """Return the capacity whose further replicas start after so many ticks.

        Requests of a slower model slow all others down, from the next tick on.
        """
        state = replace(self._state, models=self._state.models | models)
        measured = _exact(state.measured(self._capacity))
        return replace(measured, cold_start=measured.cold_start + ticks * measured.tick)

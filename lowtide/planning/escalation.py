"""Escalation from spot to dedicated: the laziest safe schedule over open batches.

A tick gives dedicated as little work as is safe. Let L_k be the seconds until deadline k less those
never counted on, w_i the seconds until replica i works, t the max time until the next tick and c a
cold start. With x replicas on (those that work soonest) until the next tick and all D from then on,
dedicated can run until deadline k

    room_k(x) = rate * ( sum over the x of (L_k - w_i)+  +  (D - x) * (L_k - t - c)+ )

requests, whatever spot does. The tick wants the smallest x with open_1 + ... + open_k <= room_k(x)
for every k, and moves to dedicated the requests that keep these replicas busy until the next tick,
earliest deadline first. So a warm replica goes only if its own cold start is affordable later.
Requests count as a whole until they have a result, and `Capacity.lost` reserves a request's time
for each of a replica's slots, so no rounding is on the unsafe side (proof:
docs/adr/0010-sla-scheduling.md).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from lowtide.planning.reasons import Bound, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from lowtide.core.ids import BatchId, TenantId
    from lowtide.planning.demand import Capacity


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch with open requests.

    `spot` and `dedicated` requests wait for their pool, the `running_` ones are claimed there;
    `unsplit` ones are promised but not queued yet. A `pinned` batch never returns to spot. Its
    `barrier` is that of the last tick.
    """

    id: BatchId
    deadline: datetime
    spot: int
    running_spot: int = 0
    dedicated: int = 0
    running_dedicated: int = 0
    unsplit: int = 0
    pinned: bool = False
    tenant: TenantId | None = None
    priority: int = 0
    barrier: datetime | None = None

    @property
    def open(self) -> int:
        """The number of requests without a result."""
        return (
            self.spot + self.running_spot + self.dedicated + self.running_dedicated + self.unsplit
        )


@dataclass(frozen=True, slots=True)
class Move:
    """A move of `lines` requests of a batch, with its reason."""

    batch: BatchId
    lines: int
    reason: Reason = field(default=Reason.DEADLINE_BOUND, compare=False)
    bound: Bound | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision of one tick.

    `escalations` move waiting requests from spot to dedicated, `revocations` take claimed requests
    from spot workers for dedicated, `returns` move requests that wait for dedicated back to spot.
    `replicas` are wanted on dedicated until the next tick. `at_risk` batches miss their deadline
    even with all of dedicated, by the `bounds`, for the reason `risk`. `slack` is the min time, in
    seconds, until all of dedicated must run (None: nothing is open). By the deadlines `tight`, in
    order, so much is due that priorities do not count.
    """

    escalations: tuple[Move, ...] = ()
    revocations: tuple[Move, ...] = ()
    returns: tuple[Move, ...] = ()
    replicas: int = 0
    at_risk: frozenset[BatchId] = frozenset()
    slack: float | None = None
    risk: Reason = field(default=Reason.DEADLINE_BOUND, compare=False)
    bounds: Mapping[BatchId, Bound] = field(default_factory=dict, compare=False)
    tight: Sequence[datetime] = field(default=(), compare=False)


class _Room:
    """The requests that dedicated can run; `starts` are in seconds from now."""

    def __init__(self, capacity: Capacity, starts: Sequence[float]) -> None:
        present_starts = sorted(min(start, capacity.cold_start) for start in starts)[
            : capacity.replicas
        ]
        self._starts = present_starts + [capacity.cold_start] * (
            capacity.replicas - len(present_starts)
        )
        self._after_tick = [max(start, capacity.tick) for start in self._starts]
        self._sums = [0.0, *accumulate(self._starts)]
        self._later_sums = [0.0, *accumulate(self._after_tick)]
        self._capacity = capacity
        self.present = len(present_starts)

    def by(self, horizon: float, replicas: int) -> float:
        """Return the requests that can run in `horizon` seconds, with `replicas` on from now."""
        working = bisect_left(self._starts, horizon, 0, replicas)
        seconds = working * horizon - self._sums[working]
        return self._capacity.line_rate * (seconds + self._others(horizon, replicas))

    def after_tick(self, horizon: float, replicas: int) -> float:
        """Return how many of them can still run after the next tick."""
        working = bisect_left(self._after_tick, horizon, 0, replicas)
        seconds = working * horizon - self._later_sums[working]
        return self._capacity.line_rate * (seconds + self._others(horizon, replicas))

    def due_before_tick(self, horizon: float, lines: int, replicas: int) -> int:
        """Return how many of `lines` must go to dedicated now, so that the rest can wait.

        A replica idles before the tick only if fewer requests remain than the replicas have slots.
        """
        due = math.ceil(lines - self.after_tick(horizon, replicas))
        return due + replicas * self._capacity.in_flight if due > 0 and replicas > 0 else 0

    def until_tick(self, replicas: int) -> int:
        """Return the requests that keep `replicas` busy until the next tick.

        In addition, each of their slots may end a request begun before and begin another.
        """
        tick = self._capacity.tick
        working = bisect_left(self._starts, tick, 0, replicas)
        done = self._capacity.line_rate * (working * tick - self._sums[working])
        return math.ceil(done) + 2 * replicas * self._capacity.in_flight

    def _others(self, horizon: float, replicas: int) -> float:
        later = horizon - self._capacity.tick - self._capacity.cold_start
        return (self._capacity.replicas - replicas) * max(later, 0.0)


class SpareRoom:
    """What dedicated can run besides open batches, so that none of their deadlines is missed.

    O(n log n) to build for n batches, O(log n) to ask. `starts` are as of `plan_tick`.
    """

    def __init__(
        self,
        batches: Iterable[OpenBatch],
        now: datetime,
        capacity: Capacity,
        starts: Sequence[float] = (),
    ) -> None:
        by_deadline = sorted(batches, key=lambda batch: batch.deadline)
        self._now = now
        self._capacity = capacity
        self._room = _Room(capacity, starts)
        self._deadlines = [batch.deadline for batch in by_deadline]
        self._demand = [0, *accumulate(batch.open for batch in by_deadline)]
        self._spare = [
            self._left(deadline, lines)
            for deadline, lines in zip(self._deadlines, self._demand[1:], strict=True)
        ]
        # The fewest of each deadline and all later ones.
        self._fewest = list(accumulate(reversed(self._spare), min))[::-1]

    def by(self, deadline: datetime) -> int:
        """Return how many more requests, due by a deadline, fit; fewer than 0 if it is missed."""
        due = bisect_right(self._deadlines, deadline)
        own = self._left(deadline, self._demand[due])
        first = bisect_left(self._deadlines, deadline)
        return min(own, self._fewest[first]) if first < len(self._fewest) else own

    @property
    def last_missed(self) -> datetime | None:
        """The last deadline that is missed; None if all are met."""
        missed = (
            deadline
            for deadline, spare in zip(
                reversed(self._deadlines), reversed(self._spare), strict=True
            )
            if spare < 0
        )
        return next(missed, None)

    def _left(self, deadline: datetime, lines: int) -> int:
        seconds = (deadline - self._now).total_seconds() - self._capacity.margin
        return math.floor(self._room.by(seconds, self._capacity.replicas) - lines)


def plan_tick(
    batches: Sequence[OpenBatch], now: datetime, capacity: Capacity, starts: Sequence[float] = ()
) -> Plan:
    """Return the changes to make now. O(n log n) for n batches.

    `starts` are the seconds until each known dedicated replica works: 0 once it does.
    """
    by_deadline = sorted(batches, key=lambda batch: (batch.deadline, batch.id))
    horizons = [(batch.deadline - now).total_seconds() - capacity.lost for batch in by_deadline]
    demand = list(accumulate(batch.open for batch in by_deadline))
    room = _Room(capacity, starts)
    bounds = _missed_bounds(by_deadline, horizons, demand, room, capacity)
    replicas = _min_replicas(room, horizons, demand, capacity)
    needed = [
        room.due_before_tick(seconds, lines, replicas)
        for seconds, lines in zip(horizons, demand, strict=True)
    ]
    targets, revoked = _allocate(by_deadline, needed, room.until_tick(replicas))
    adjusted = by_deadline
    if any(revoked):
        # Requests revoked from spot go to dedicated now, so the last of the others may stay.
        adjusted = [
            replace(
                batch, running_spot=batch.running_spot - lines, dedicated=batch.dedicated + lines
            )
            for batch, lines in zip(by_deadline, revoked, strict=True)
        ]
        targets, _ = _allocate(adjusted, needed, room.until_tick(replicas))
    pairs = list(zip(adjusted, targets, strict=True))
    causes = _causes(by_deadline, needed)
    deadlines = _deadline_bounds(horizons, demand, room, replicas, capacity)
    escalated = _moves((batch, target - batch.dedicated) for batch, target in pairs)
    return Plan(
        escalations=_explained(escalated, by_deadline, causes, deadlines),
        revocations=_explained(
            _moves(zip(by_deadline, revoked, strict=True)), by_deadline, causes, deadlines
        ),
        returns=_moves(
            (batch, batch.dedicated - target) for batch, target in pairs if not batch.pinned
        ),
        replicas=replicas,
        at_risk=frozenset(bounds),
        slack=_slack(room, horizons, demand, capacity),
        bounds=bounds,
        tight=_tight(by_deadline, horizons, demand, room),
    )


HEADROOM = 2
"""Times the open work that cold dedicated could end, from the next tick on, where priorities count."""


def _tight(
    batches: Sequence[OpenBatch], horizons: Sequence[float], demand: Sequence[int], room: _Room
) -> list[datetime]:
    """Return the deadlines that do not leave enough headroom, earliest first."""
    return [
        batch.deadline
        for batch, seconds, lines in zip(batches, horizons, demand, strict=True)
        if HEADROOM * lines > room.by(seconds, 0)
    ]


def _missed_bounds(
    batches: Sequence[OpenBatch],
    horizons: Sequence[float],
    demand: Sequence[int],
    room: _Room,
    capacity: Capacity,
) -> dict[BatchId, Bound]:
    """Return the bounds of the batches that all of dedicated cannot finish in time."""
    bounds = {}
    for batch, seconds, lines in zip(batches, horizons, demand, strict=True):
        # Half-done requests count as whole, which alone must not raise an alarm at the bound.
        left = seconds + capacity.lost
        by_then = room.by(left - capacity.margin, capacity.replicas)
        if lines > by_then:
            rate = capacity.line_rate
            bounds[batch.id] = Bound(lines, left, capacity.replicas, rate, int(by_then))
    return bounds


def _deadline_bounds(
    horizons: Sequence[float],
    demand: Sequence[int],
    room: _Room,
    replicas: int,
    capacity: Capacity,
) -> list[Bound]:
    """Return the bound of each deadline with these replicas on."""
    return [
        Bound(
            lines, left + capacity.lost, replicas, capacity.line_rate, int(room.by(left, replicas))
        )
        for left, lines in zip(horizons, demand, strict=True)
    ]


def _causes(batches: Sequence[OpenBatch], needed: Sequence[int]) -> list[int | None]:
    """Return the position of the deadline that moves requests of each batch, None if none does.

    It is the first one, from the batch's own on, for which dedicated has too few requests so far.
    """
    allocated = list(accumulate(each.dedicated + each.running_dedicated for each in batches))
    causes: list[int | None] = []
    cause = None
    for position in reversed(range(len(batches))):
        if needed[position] > allocated[position]:
            cause = position
        causes.append(cause)
    return causes[::-1]


def _explained(
    moves: Sequence[Move],
    batches: Sequence[OpenBatch],
    causes: Sequence[int | None],
    deadlines: Sequence[Bound],
) -> tuple[Move, ...]:
    """Return the moves with their reasons: a deadline, or replicas that would idle until a tick."""
    cause_of = dict(zip((batch.id for batch in batches), causes, strict=True))
    return tuple(
        replace(move, reason=Reason.DEDICATED_IDLE)
        if (cause := cause_of[move.batch]) is None
        else replace(move, bound=deadlines[cause])
        for move in moves
    )


def _min_replicas(
    room: _Room, horizons: Sequence[float], demand: Sequence[int], capacity: Capacity
) -> int:
    """Return the min number of replicas that meets every deadline.

    A replica that is present stays while it would be wanted back within its own cold start.
    """
    fewest = 0
    for seconds, lines in zip(horizons, demand, strict=True):
        while fewest < capacity.replicas and lines > room.by(seconds, fewest):
            fewest += 1
    replicas = fewest
    for seconds, lines in zip(horizons, demand, strict=True):
        sooner = seconds - capacity.cold_start
        while replicas < room.present and lines > room.by(sooner, replicas):
            replicas += 1
    return replicas


def _allocate(
    batches: Sequence[OpenBatch], needed: Sequence[int], busy: int
) -> tuple[list[int], list[int]]:
    """Return how many requests of each batch are to wait for dedicated, and how many to revoke.

    `busy` requests keep the wanted replicas busy until the next tick. At least `needed` of each
    prefix must go to them; only if too few wait, they are revoked from spot workers.
    """
    spare = busy - sum(batch.running_dedicated for batch in batches)
    targets = []
    for batch in batches:
        targets.append(max(0, min(batch.spot + batch.dedicated, spare)))
        spare -= targets[-1]
    revoked = [0] * len(batches)
    allocated = next_waiting = next_running = 0
    for position, batch in enumerate(batches):
        allocated += batch.running_dedicated + targets[position]
        shortage = min(needed[position], busy) - allocated
        while shortage > 0 and next_waiting <= position:
            candidate = batches[next_waiting]
            count = min(candidate.spot + candidate.dedicated - targets[next_waiting], shortage)
            targets[next_waiting] += count
            allocated += count
            shortage -= count
            next_waiting += shortage > 0
        while shortage > 0 and next_running <= position:
            count = min(batches[next_running].running_spot - revoked[next_running], shortage)
            revoked[next_running] += count
            allocated += count
            shortage -= count
            next_running += shortage > 0
    return targets, revoked


def _moves(counts: Iterable[tuple[OpenBatch, int]]) -> tuple[Move, ...]:
    return tuple(Move(batch.id, count) for batch, count in counts if count > 0)


def _slack(
    room: _Room, horizons: Sequence[float], demand: Sequence[int], capacity: Capacity
) -> float | None:
    if capacity.speed <= 0:
        return None
    return min(
        (
            (room.by(seconds, capacity.replicas) - lines) / capacity.speed
            for seconds, lines in zip(horizons, demand, strict=True)
            if lines > 0
        ),
        default=None,
    )

"""When spot is not enough: the laziest safe schedule over open batches.

A tick lets dedicated do as little as it may. Let L_k be the seconds until deadline k less what is
never counted on, w_i the seconds until replica i works, t the longest time until the next tick and c
a cold start. With x replicas on (the ones that work soonest) until the next tick and all D from then
on, dedicated can run until deadline k

    room_k(x) = rate * ( sum over the x of (L_k - w_i)+  +  (D - x) * (L_k - t - c)+ )

lines, whatever spot does. The tick wants the fewest x with open_1 + ... + open_k <= room_k(x) for every
k, and puts into dedicated the lines that keep them busy until the next tick, earliest deadline first.
So a warm replica goes only if its own cold start can be afforded later. Lines count as a whole until
they have a result, and `Capacity.lost` holds a line's time for each of a replica's places, so that no
rounding is on the wrong side (docs/adr/0010-sla-scheduling.md has the proof).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from lowtide.core.ids import BatchId
    from lowtide.planning.demand import Capacity


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch with lines still open.

    `spot` and `dedicated` wait for their pool, the others are in the hands of its workers; `unsplit`
    have been promised but are not queued yet. Of a `pinned` batch nothing goes back to spot.
    """

    id: BatchId
    deadline: datetime
    spot: int
    running_spot: int = 0
    dedicated: int = 0
    running_dedicated: int = 0
    unsplit: int = 0
    pinned: bool = False

    @property
    def open(self) -> int:
        """Lines without a result."""
        return (
            self.spot + self.running_spot + self.dedicated + self.running_dedicated + self.unsplit
        )


@dataclass(frozen=True, slots=True)
class Move:
    """Move `lines` of a batch."""

    batch: BatchId
    lines: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What one tick decides.

    `escalations` move waiting spot lines to dedicated, `revocations` take lines out of the hands of
    spot workers for dedicated, `returns` give lines that wait for dedicated back to spot. `replicas`
    are wanted on dedicated until the next tick. `at_risk` batches cannot be held even by all of
    them. `slack` is the least time, in seconds, until all of dedicated must run (None: nothing is
    open).
    """

    escalations: tuple[Move, ...] = ()
    revocations: tuple[Move, ...] = ()
    returns: tuple[Move, ...] = ()
    replicas: int = 0
    at_risk: frozenset[BatchId] = frozenset()
    slack: float | None = None


class _Room:
    """What dedicated can run, in lines; `starts` in seconds from now, soonest first."""

    def __init__(self, capacity: Capacity, starts: Sequence[float]) -> None:
        known = sorted(min(start, capacity.cold_start) for start in starts)[: capacity.replicas]
        self._starts = known + [capacity.cold_start] * (capacity.replicas - len(known))
        self._after_tick = [max(start, capacity.tick) for start in self._starts]
        self._sums = [0.0, *accumulate(self._starts)]
        self._later_sums = [0.0, *accumulate(self._after_tick)]
        self._capacity = capacity
        self.present = len(known)

    def by(self, left: float, replicas: int) -> float:
        """Return the lines that can be run in `left` seconds, with `replicas` on at once."""
        working = bisect_left(self._starts, left, 0, replicas)
        seconds = working * left - self._sums[working]
        return self._capacity.line_rate * (seconds + self._others(left, replicas))

    def after_tick(self, left: float, replicas: int) -> float:
        """Return how many of them can still be run after the next tick."""
        working = bisect_left(self._after_tick, left, 0, replicas)
        seconds = working * left - self._later_sums[working]
        return self._capacity.line_rate * (seconds + self._others(left, replicas))

    def due_before_tick(self, left: float, lines: int, replicas: int) -> int:
        """Return how many of `lines` must be dedicated's now, so that what is left can wait.

        A replica idles before the tick only if fewer lines remain than the replicas have places.
        """
        due = math.ceil(lines - self.after_tick(left, replicas))
        return due + replicas * self._capacity.in_flight if due > 0 and replicas > 0 else 0

    def until_tick(self, replicas: int) -> int:
        """Return the lines that keep `replicas` busy until the next tick.

        Beside what they do, each of their places may end a line begun before and begin another.
        """
        tick = self._capacity.tick
        working = bisect_left(self._starts, tick, 0, replicas)
        done = self._capacity.line_rate * (working * tick - self._sums[working])
        return math.ceil(done) + 2 * replicas * self._capacity.in_flight

    def _others(self, left: float, replicas: int) -> float:
        later = left - self._capacity.tick - self._capacity.cold_start
        return (self._capacity.replicas - replicas) * max(later, 0.0)


def plan_tick(
    batches: Sequence[OpenBatch], now: datetime, capacity: Capacity, starts: Sequence[float] = ()
) -> Plan:
    """Return what must change now. O(n log n) for n batches.

    `starts` are the seconds until each dedicated replica that is there works: 0 once it does.
    """
    by_deadline = sorted(batches, key=lambda batch: (batch.deadline, batch.id))
    left = [(batch.deadline - now).total_seconds() - capacity.lost for batch in by_deadline]
    demand = list(accumulate(batch.open for batch in by_deadline))
    room = _Room(capacity, starts)
    most = capacity.replicas
    # Half-done lines count as whole: at the bound that alone must not raise an alarm.
    at_risk = frozenset(
        batch.id
        for batch, seconds, lines in zip(by_deadline, left, demand, strict=True)
        if lines > room.by(seconds + capacity.lost - capacity.margin, most)
    )
    replicas = _wanted(room, left, demand, capacity)
    needed = [
        room.due_before_tick(seconds, lines, replicas)
        for seconds, lines in zip(left, demand, strict=True)
    ]
    targets, revoked = _place(by_deadline, needed, room.until_tick(replicas))
    taken = by_deadline
    if any(revoked):
        # Lines taken from spot workers are dedicated's now, and the last of the others may stay.
        taken = [
            replace(
                batch, running_spot=batch.running_spot - lines, dedicated=batch.dedicated + lines
            )
            for batch, lines in zip(by_deadline, revoked, strict=True)
        ]
        targets, _ = _place(taken, needed, room.until_tick(replicas))
    pairs = list(zip(taken, targets, strict=True))
    return Plan(
        escalations=_moves((batch, want - batch.dedicated) for batch, want in pairs),
        revocations=_moves(zip(by_deadline, revoked, strict=True)),
        returns=_moves(
            (batch, batch.dedicated - want) for batch, want in pairs if not batch.pinned
        ),
        replicas=replicas,
        at_risk=at_risk,
        slack=_slack(room, left, demand, capacity),
    )


def _wanted(room: _Room, left: Sequence[float], demand: Sequence[int], capacity: Capacity) -> int:
    """Return the fewest replicas that hold every deadline.

    One that is there stays while it would be wanted back within its own cold start.
    """
    fewest = 0
    for seconds, lines in zip(left, demand, strict=True):
        while fewest < capacity.replicas and lines > room.by(seconds, fewest):
            fewest += 1
    kept = fewest
    for seconds, lines in zip(left, demand, strict=True):
        sooner = seconds - capacity.cold_start
        while kept < room.present and lines > room.by(sooner, kept):
            kept += 1
    return kept


def _place(
    batches: Sequence[OpenBatch], needed: Sequence[int], busy: int
) -> tuple[list[int], list[int]]:
    """Return how many lines of each batch wait for dedicated from now on, and are taken from spot.

    `busy` lines keep the wanted replicas busy until the next tick. At least `needed` of each prefix
    must be theirs; only if it waits nowhere, it is taken from spot workers.
    """
    spare = busy - sum(batch.running_dedicated for batch in batches)
    targets = []
    for batch in batches:
        targets.append(max(0, min(batch.spot + batch.dedicated, spare)))
        spare -= targets[-1]
    revoked = [0] * len(batches)
    placed = waiting = held = 0
    for position, batch in enumerate(batches):
        placed += batch.running_dedicated + targets[position]
        short = min(needed[position], busy) - placed
        while short > 0 and waiting <= position:
            here = batches[waiting]
            taken = min(here.spot + here.dedicated - targets[waiting], short)
            targets[waiting] += taken
            placed += taken
            short -= taken
            waiting += short > 0
        while short > 0 and held <= position:
            taken = min(batches[held].running_spot - revoked[held], short)
            revoked[held] += taken
            placed += taken
            short -= taken
            held += short > 0
    return targets, revoked


def _moves(lines: Iterable[tuple[OpenBatch, int]]) -> tuple[Move, ...]:
    return tuple(Move(batch.id, count) for batch, count in lines if count > 0)


def _slack(
    room: _Room, left: Sequence[float], demand: Sequence[int], capacity: Capacity
) -> float | None:
    if capacity.speed <= 0:
        return None
    return min(
        (
            (room.by(seconds, capacity.replicas) - lines) / capacity.speed
            for seconds, lines in zip(left, demand, strict=True)
            if lines > 0
        ),
        default=None,
    )

"""Many batches, many ticks, the worst spot pool there could be: no deadline that held is missed.

Dedicated runs whole lines, earliest deadline first, a line a place; replicas start and stop as the
plan wants. Spot workers take lines, keep them, give them back or finish them as a random adversary
likes, between any two ticks.
"""

from __future__ import annotations

import heapq
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from lowtide.core.ids import BatchId
from lowtide.planning.demand import Capacity
from lowtide.planning.escalation import OpenBatch, plan_tick

if TYPE_CHECKING:
    from random import Random

    from lowtide.planning.escalation import Plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(eq=False)
class Lines:
    """Lines of a batch by where they are."""

    due: float
    spot: int
    held: int = 0
    dedicated: int = 0
    ended: float = 0.0

    @property
    def open(self) -> int:
        return self.spot + self.held + self.dedicated


@dataclass
class Yard:
    """Dedicated replicas: when each is warm, and when each is done with its line, and whose it is."""

    capacity: Capacity
    batches: list[Lines]
    warm: list[float] = field(default_factory=list)
    busy: list[tuple[float, Lines] | None] = field(default_factory=list)

    def running(self, batch: Lines) -> int:
        return sum(each is not None and each[1] is batch for each in self.busy)

    def resize(self, replicas: int, now: float) -> None:
        del self.warm[replicas:], self.busy[replicas:]
        while len(self.warm) < replicas:
            self.warm.append(now + self.capacity.cold_start)
            self.busy.append(None)

    def run(self, now: float, until: float) -> None:
        """Work, line by line; a line in hand counts as dedicated's until it has ended."""
        free = [(max(now, warm), number) for number, warm in enumerate(self.warm)]
        events = [
            (each[0], number, each[1]) if each else (start, number, None)
            for (start, number), each in zip(free, self.busy, strict=True)
        ]
        self.busy = [None] * len(self.warm)
        order = [(at, number) for at, number, _ in events]
        owners = {number: owner for _, number, owner in events}
        heapq.heapify(order)
        started = {id(batch): 0 for batch in self.batches}
        for owner in owners.values():
            if owner is not None:
                started[id(owner)] += 1
        while order:
            at, number = heapq.heappop(order)
            owner = owners[number]
            if at > until:
                if owner is not None:
                    self.busy[number] = (at, owner)
                continue
            if owner is not None:
                owner.dedicated -= 1
                started[id(owner)] -= 1
                owner.ended = at
            waiting = [each for each in self.batches if each.dedicated > started[id(each)]]
            if not waiting:
                continue
            first = min(waiting, key=lambda each: each.due)
            started[id(first)] += 1
            owners[number] = first
            heapq.heappush(order, (at + 1 / self.capacity.rate, number))


def _plan(yard: Yard, now: float) -> Plan:
    batches = []
    for number, each in enumerate(yard.batches):
        running = yard.running(each)
        due = NOW + timedelta(seconds=each.due)
        id_ = BatchId(uuid.UUID(int=number))
        waiting = each.dedicated - running
        batches.append(OpenBatch(id_, due, each.spot, each.held, waiting, running))
    starts = [max(0.0, warm - now) for warm in yard.warm]
    return plan_tick(batches, NOW + timedelta(seconds=now), yard.capacity, starts)


def _apply(yard: Yard, plan: Plan) -> None:
    for move in plan.escalations:
        batch = yard.batches[move.batch.int]
        batch.spot -= move.lines
        batch.dedicated += move.lines
    for move in plan.returns:
        batch = yard.batches[move.batch.int]
        batch.dedicated -= move.lines
        batch.spot += move.lines
    for move in plan.revocations:
        batch = yard.batches[move.batch.int]
        batch.held -= move.lines
        batch.dedicated += move.lines


def _meddle(batches: list[Lines], rng: Random, *, hoard: bool, helpful: bool) -> None:
    for batch in batches:
        taken = batch.spot if hoard else rng.randint(0, batch.spot)
        batch.spot -= taken
        batch.held += taken
        if not hoard:
            back = rng.randint(0, batch.held)
            batch.held -= back
            batch.spot += back
        if helpful:
            batch.held -= rng.randint(0, batch.held) // 4


@settings(max_examples=150)
@given(
    sizes=st.lists(st.tuples(st.integers(50, 4000), st.integers(0, 400)), min_size=1, max_size=6),
    replicas=st.integers(1, 5),
    rate=st.sampled_from([0.05, 0.2, 1.0]),
    cold_start=st.sampled_from([0.0, 45.0, 180.0]),
    tick=st.sampled_from([10.0, 60.0, 300.0]),
    hoard=st.booleans(),
    helpful=st.booleans(),
    twice=st.booleans(),
    rng=st.randoms(use_true_random=False),
)
def test_safe_batches_meet_deadlines_whatever_spot_does(
    sizes: list[tuple[int, int]],
    replicas: int,
    rate: float,
    cold_start: float,
    tick: float,
    hoard: bool,
    helpful: bool,
    twice: bool,
    rng: Random,
) -> None:
    # One line's time: a replica in the middle of a line of a later batch ends it first.
    margin = 1 / rate
    capacity = Capacity(rate, replicas, cold_start, margin, tick, in_flight=1)
    batches = [Lines(float(due), lines) for due, lines in sizes]
    yard = Yard(capacity, batches)
    now = 0.0
    at_start = _plan(yard, now)
    ordered = sorted(batches, key=lambda each: (each.due, batches.index(each)))
    safe = []
    demand = 0
    for each in ordered:
        demand += each.open
        room = each.due - capacity.lost - cold_start
        if demand > replicas * rate * max(0.0, room):
            break
        safe.append(each)
    # What is due behind the first batch that cannot be held is not promised anything either.
    assert all(BatchId(uuid.UUID(int=batches.index(each))) not in at_start.at_risk for each in safe)
    while any(each.open for each in safe) and now < 10_000:
        plan = _plan(yard, now)
        _apply(yard, plan)
        # Lines in the hands of a replica that is stopped wait again, and may go back to spot.
        repeated = twice and plan.replicas >= len(yard.warm)
        yard.resize(plan.replicas, now)
        if repeated:
            again = _plan(yard, now)
            assert (again.escalations, again.returns, again.revocations) == ((), (), ())
        until = now + tick
        _meddle(batches, rng, hoard=hoard, helpful=helpful)
        yard.run(now, until)
        for each in safe:
            assert each.open == 0 or until <= each.due
            assert each.ended <= each.due
        now = until

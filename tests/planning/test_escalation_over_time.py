"""Many batches and ticks beside the worst possible spot pool: no safe deadline is missed.

Dedicated runs one request per place, earliest deadline first; replicas start and stop as planned.
Between two ticks a random adversary lets spot workers claim, keep, release or finish requests.
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
class BatchRequests:
    """The requests of a batch by place."""

    due: float
    spot: int
    claimed: int = 0
    dedicated: int = 0
    ended: float = 0.0

    @property
    def open(self) -> int:
        return self.spot + self.claimed + self.dedicated


@dataclass
class DedicatedPool:
    """Dedicated replicas: when each is warm, when its request ends, and of which batch that is."""

    capacity: Capacity
    batches: list[BatchRequests]
    warm: list[float] = field(default_factory=list)
    busy: list[tuple[float, BatchRequests] | None] = field(default_factory=list)

    def running(self, batch: BatchRequests) -> int:
        return sum(each is not None and each[1] is batch for each in self.busy)

    def resize(self, replicas: int, now: float) -> None:
        del self.warm[replicas:], self.busy[replicas:]
        while len(self.warm) < replicas:
            self.warm.append(now + self.capacity.cold_start)
            self.busy.append(None)

    def run(self, now: float, until: float) -> None:
        """Run request by request; a running one counts as dedicated until it has ended."""
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


def _plan(dedicated: DedicatedPool, now: float) -> Plan:
    batches = []
    for number, each in enumerate(dedicated.batches):
        running = dedicated.running(each)
        due = NOW + timedelta(seconds=each.due)
        id_ = BatchId(uuid.UUID(int=number))
        waiting = each.dedicated - running
        batches.append(OpenBatch(id_, due, each.spot, each.claimed, waiting, running))
    starts = [max(0.0, warm - now) for warm in dedicated.warm]
    return plan_tick(batches, NOW + timedelta(seconds=now), dedicated.capacity, starts)


def _apply(dedicated: DedicatedPool, plan: Plan) -> None:
    for move in plan.escalations:
        batch = dedicated.batches[move.batch.int]
        batch.spot -= move.lines
        batch.dedicated += move.lines
    for move in plan.returns:
        batch = dedicated.batches[move.batch.int]
        batch.dedicated -= move.lines
        batch.spot += move.lines
    for move in plan.revocations:
        batch = dedicated.batches[move.batch.int]
        batch.claimed -= move.lines
        batch.dedicated += move.lines


def _disturb(batches: list[BatchRequests], rng: Random, *, hoard: bool, helpful: bool) -> None:
    for batch in batches:
        claimed = batch.spot if hoard else rng.randint(0, batch.spot)
        batch.spot -= claimed
        batch.claimed += claimed
        if not hoard:
            released = rng.randint(0, batch.claimed)
            batch.claimed -= released
            batch.spot += released
        if helpful:
            batch.claimed -= rng.randint(0, batch.claimed) // 4


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
    # The time of one request: a replica first finishes the running request of a later batch.
    margin = 1 / rate
    capacity = Capacity(rate, replicas, cold_start, margin, tick, in_flight=1)
    batches = [BatchRequests(float(due), requests) for due, requests in sizes]
    dedicated = DedicatedPool(capacity, batches)
    now = 0.0
    at_start = _plan(dedicated, now)
    ordered = sorted(batches, key=lambda each: (each.due, batches.index(each)))
    safe = []
    demand = 0
    for each in ordered:
        demand += each.open
        room = each.due - capacity.lost - cold_start
        if demand > replicas * rate * max(0.0, room):
            break
        safe.append(each)
    # Nothing is promised to batches with later deadlines than the first infeasible one.
    assert all(BatchId(uuid.UUID(int=batches.index(each))) not in at_start.at_risk for each in safe)
    while any(each.open for each in safe) and now < 10_000:
        plan = _plan(dedicated, now)
        _apply(dedicated, plan)
        # Requests of a stopped replica wait again, and may return to spot.
        repeated = twice and plan.replicas >= len(dedicated.warm)
        dedicated.resize(plan.replicas, now)
        if repeated:
            again = _plan(dedicated, now)
            assert (again.escalations, again.returns, again.revocations) == ((), (), ())
        until = now + tick
        _disturb(batches, rng, hoard=hoard, helpful=helpful)
        dedicated.run(now, until)
        for each in safe:
            assert each.open == 0 or until <= each.due
            assert each.ended <= each.due
        now = until

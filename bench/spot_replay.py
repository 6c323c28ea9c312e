"""A fleet on a recorded spot market, with a virtual clock and the scheduler's own code.

Every replica is paid from its start, cold start included, until it is stopped; the newest replicas
stop first. No decision falls between two events (a change of the market or of the rate, a deadline, a
tick of the scheduler), so each pool is advanced in one step. Running requests count for the earliest
deadlines of their pool.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from bench.spot_crew import Crew
from lowtide.core.ids import BatchId
from lowtide.planning.demand import desired_replicas
from lowtide.planning.escalation import Move, OpenBatch, Plan, plan_tick

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.spot_bounds import Window
    from lowtide.planning.demand import Capacity

START = datetime(2026, 1, 1, tzinfo=UTC)
SPOT_ROWS_PER_REPLICA = 5
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Moment:
    """The state from `at` on, for a plot."""

    at: float
    market: int
    spot: int
    dedicated: int
    open: int


@dataclass(slots=True)
class Outcome:
    """The seconds until the last request ended (None: not within the window), and the usage.

    `spot` and `dedicated` are paid replica-seconds. `late` requests had no result at the deadline of
    their batch, by its number.
    """

    ended: float | None = None
    spot: float = 0.0
    dedicated: float = 0.0
    history: list[Moment] = field(default_factory=list)
    late: dict[int, int] = field(default_factory=dict)

    def cost(self, price_ratio: float) -> float:
        """Return the cost in spot replica-seconds."""
        return self.spot + price_ratio * self.dedicated


class Policy(Protocol):
    """A decision at each tick; `starts` are the seconds until each dedicated replica is ready."""

    def __call__(
        self, batch: OpenBatch, now: datetime, capacity: Capacity, starts: Sequence[float]
    ) -> Plan:
        """Return the plan of this tick."""
        ...


def laziest_safe(
    batch: OpenBatch, now: datetime, capacity: Capacity, starts: Sequence[float]
) -> Plan:
    """Decide as `functions/schedule` does."""
    return plan_tick([batch], now, capacity, starts)


def greedy(batch: OpenBatch, now: datetime, capacity: Capacity, starts: Sequence[float]) -> Plan:
    """Move the whole batch permanently, once dedicated alone would be late after the next tick."""
    plan = plan_tick([batch], now, capacity, starts)
    if plan.replicas == 0 and batch.dedicated + batch.running_dedicated == 0:
        return plan
    return Plan(
        escalations=(Move(batch.id, batch.spot),) if batch.spot else (),
        revocations=plan.revocations,
        replicas=capacity.replicas,
    )


@dataclass(slots=True)
class Part:
    """The open requests of a batch in a fleet, by pool; `due` in seconds."""

    number: int
    due: float
    spot: int
    dedicated: int = 0

    @property
    def open(self) -> int:
        """The number of requests without a result."""
        return self.spot + self.dedicated


@dataclass(frozen=True, slots=True)
class Steps:
    """Values that change every `gap` seconds; the last one stays."""

    values: Sequence[float]
    gap: float = math.inf

    def at(self, now: float) -> float:
        """Return the value at `now`."""
        return self.values[min(self._position(now), len(self.values) - 1)]

    def end(self, now: float) -> float:
        """Return the time of the next change."""
        return (self._position(now) + 1) * self.gap if self.gap < math.inf else math.inf

    def _position(self, now: float) -> int:
        return int((now + _ROUNDING) / self.gap)


STEADY = Steps([1.0])


class FleetRun:
    """The pools and the requests of a fleet; `speed` is a factor of the rate of its replicas.

    Until the next tick, dedicated replicas have work for the rate that is `counted_on`: `done` are the
    requests that they could end at that rate, or at their own if it is lower.
    """

    def __init__(
        self, capacity: Capacity, market: Steps, parts: Iterable[Part], speed: Steps = STEADY
    ) -> None:
        self.capacity = capacity
        self.market = market
        self.speed = speed
        self.parts = sorted(parts, key=lambda part: (part.due, part.number))
        self.spot, self.dedicated = Crew(capacity.rate), Crew(capacity.rate)
        self.spot.lines = sum(part.spot for part in self.parts)
        self.wanted = 0
        self.outcome = Outcome()
        self.counted_on = math.inf
        self.done = 0.0

    @property
    def lines(self) -> int:
        """The number of requests without a result."""
        return self.spot.lines + self.dedicated.lines

    def batches(self, now: float) -> list[OpenBatch]:
        """Return the open batches as a tick sees them, after the market has changed."""
        self.spot.resize(min(len(self.spot), int(self.market.at(now))), now)
        spot, dedicated = self.spot.in_hand(now), self.dedicated.in_hand(now)
        batches = []
        for part in self.parts:
            running_spot, running_dedicated = min(spot, part.spot), min(dedicated, part.dedicated)
            spot, dedicated = spot - running_spot, dedicated - running_dedicated
            batch = OpenBatch(
                batch_id(part.number),
                START + timedelta(seconds=part.due),
                spot=part.spot - running_spot,
                running_spot=running_spot,
                dedicated=part.dedicated - running_dedicated,
                running_dedicated=running_dedicated,
            )
            batches.append(batch)
        return batches

    def apply(self, plan: Plan) -> None:
        """Move requests between the pools; revoked ones lose their progress."""
        for move in plan.escalations:
            self._escalate(move, move.lines)
        for move in plan.returns:
            self._escalate(move, -move.lines)
        self.spot.give_up(sum(move.lines for move in plan.revocations))
        for move in plan.revocations:
            part = self.part(move.batch)
            part.spot -= move.lines
            part.dedicated += move.lines
            self.dedicated.lines += move.lines
        self.wanted = plan.replicas

    def _escalate(self, move: Move, lines: int) -> None:
        part = self.part(move.batch)
        part.spot -= lines
        part.dedicated += lines
        self.spot.lines -= lines
        self.dedicated.lines += lines

    def part(self, batch: BatchId) -> Part:
        """Return the part of a batch."""
        return next(part for part in self.parts if part.number == batch.int)

    def withdraw(self, batch: OpenBatch, lines: int) -> None:
        """Take waiting requests of a batch, as it is now, out of the fleet, those of spot first."""
        part = self.part(batch.id)
        of_spot = min(lines, batch.spot)
        part.spot -= of_spot
        part.dedicated -= lines - of_spot
        self.spot.lines -= of_spot
        self.dedicated.lines -= lines - of_spot

    def join(self, number: int, due: float, lines: int) -> None:
        """Add requests of a batch that wait for dedicated."""
        part = next((each for each in self.parts if each.number == number), None)
        if part is None:
            part = Part(number, due, 0)
            self.parts = sorted([*self.parts, part], key=lambda each: (each.due, each.number))
        part.dedicated += lines
        self.dedicated.lines += lines

    def run(self, now: float, tick: float, *, record: bool = False) -> None:
        """Run from `now` to the next tick, or until all requests have ended."""
        while now < tick and self.lines > 0:
            market = int(self.market.at(now))
            ready = now + self.capacity.cold_start
            wanted = desired_replicas(self.spot.lines, SPOT_ROWS_PER_REPLICA, max_replicas=market)
            if len(self.spot) > market:
                self.spot.resize(market, now)
            self.spot.resize(wanted, ready)
            self.dedicated.resize(self.wanted, ready)
            self.spot.rate = self.dedicated.rate = self.capacity.rate * self.speed.at(now)
            if record:
                counts = len(self.spot), len(self.dedicated)
                self.outcome.history.append(Moment(now, market, *counts, self.lines))
            due = min(part.due for part in self.parts)
            until = min(self.market.end(now), self.speed.end(now), due, tick)
            ended = self._advance(now, until)
            now = until
            self._expire(now)
            if self.lines == 0:
                self.outcome.ended = None if self.outcome.late else ended
        if self.lines == 0:
            self.spot.resize(0, now)
            self.dedicated.resize(0, now)
        self.outcome.spot, self.outcome.dedicated = self.spot.paid, self.dedicated.paid

    def _advance(self, now: float, until: float) -> float:
        """Advance both pools; return the end of the last request. Replicas are not paid after it."""
        ends = [now]
        worked = self.dedicated.worked
        for crew in (self.spot, self.dedicated):
            if lines := crew.lines:
                ends.append(crew.run(now, until))
                self._end(crew, lines - crew.lines)
            else:
                crew.paid += len(crew) * (until - now)
        rate = min(self.dedicated.rate, self.counted_on)
        self.done += (self.dedicated.worked - worked) * rate
        ended = max(ends)
        if self.lines == 0:
            for crew in (self.spot, self.dedicated):
                crew.paid -= len(crew) * (until - ended)
        return ended

    def _end(self, crew: Crew, lines: int) -> None:
        """Take ended requests off the earliest deadlines of a pool."""
        for part in self.parts:
            count = min(lines, part.spot if crew is self.spot else part.dedicated)
            lines -= count
            if crew is self.spot:
                part.spot -= count
            else:
                part.dedicated -= count

    def _expire(self, now: float) -> None:
        for part in self.parts:
            if part.due <= now + _ROUNDING and part.open:
                self.outcome.late[part.number] = part.open
                self.spot.lines -= part.spot
                self.dedicated.lines -= part.dedicated
                part.spot = part.dedicated = 0
        self.parts = [part for part in self.parts if part.open]


def batch_id(number: int) -> BatchId:
    """Return the id of a batch."""
    return BatchId(uuid.UUID(int=number))


def replay(
    window: Window, capacity: Capacity, policy: Policy = laziest_safe, *, record: bool = False
) -> Outcome:
    """Run a window until its batch ends or reaches its deadline."""
    market = Steps(window.market, window.gap)
    fleet = FleetRun(capacity, market, [Part(1, window.seconds, window.lines)])
    now = 0.0
    while now < window.seconds and fleet.lines > 0:
        batch = fleet.batches(now)[0]
        at = START + timedelta(seconds=now)
        fleet.apply(policy(batch, at, capacity, fleet.dedicated.starts(now)))
        fleet.run(now, now + capacity.tick, record=record)
        now += capacity.tick
    return fleet.outcome

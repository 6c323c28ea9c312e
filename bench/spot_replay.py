"""One batch over a recorded spot market, with a virtual clock and the scheduler's own code.

A replica runs one request after the other; the request of an interrupted spot replica starts over.
Every replica is paid from its start, cold start included, until it is stopped; the newest replicas
stop first. No decision falls between two events (a change of the market, a tick of the scheduler),
so each pool is advanced in one step.
"""

from __future__ import annotations

import heapq
import math
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from lowtide.core.ids import BatchId
from lowtide.planning.demand import desired_replicas
from lowtide.planning.escalation import Move, OpenBatch, Plan, plan_tick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.planning.demand import Capacity

START = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = BatchId(uuid.UUID(int=1))
SPOT_ROWS_PER_REPLICA = 5
_ROUNDING = 1e-9
_MICROSECOND = 1e-6


@dataclass(frozen=True, slots=True)
class Window:
    """The available spot replicas every `gap` seconds, and a batch of `lines` within `seconds`."""

    market: Sequence[int]
    gap: float
    seconds: float
    lines: int


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

    `spot` and `dedicated` are paid replica-seconds.
    """

    ended: float | None = None
    spot: float = 0.0
    dedicated: float = 0.0
    history: list[Moment] = field(default_factory=list)

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


class Crew:
    """The replicas and the open requests of a pool."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.lines = 0
        self.paid = 0.0
        self._ready: list[float] = []
        self._done: list[float] = []

    def __len__(self) -> int:
        return len(self._ready)

    def starts(self, now: float) -> list[float]:
        """Return the seconds until each replica is ready."""
        return [max(0.0, ready - now) for ready in self._ready]

    def in_hand(self, now: float) -> int:
        """Return the number of running requests."""
        return min(sum(ready <= now for ready in self._ready), self.lines)

    def resize(self, replicas: int, ready: float) -> None:
        """Start replicas, or stop the newest ones."""
        del self._ready[replicas:], self._done[replicas:]
        missing = replicas - len(self._ready)
        self._ready += [ready] * missing
        self._done += [0.0] * missing

    def give_up(self, lines: int) -> None:
        """Drop running requests, those with the least progress first."""
        self.lines -= lines
        for position in sorted(range(len(self._done)), key=self._done.__getitem__)[:lines]:
            self._done[position] = 0.0

    def run(self, start: float, end: float) -> float:
        """Work from `start` to `end`; return the end of the last request, `end` if not yet."""
        self.paid += len(self._ready) * (end - start)
        finished = 0
        progress = []
        for ready, done in zip(self._ready, self._done, strict=True):
            total = done + max(0.0, end - max(start, ready)) * self.rate + _ROUNDING
            whole = int(total)
            finished += whole
            progress.append(max(0.0, total - whole - _ROUNDING))
        if finished + len(progress) <= self.lines:
            self.lines -= finished
            self._done = progress
            return end
        return self._run_dry(start, end)

    def _run_dry(self, start: float, end: float) -> float:
        """Do the same request by request, as there may be fewer requests than replicas."""
        waiting = self.lines
        line = 1 / self.rate
        events: list[tuple[float, int]] = []
        last = start
        by_age = sorted(range(len(self._ready)), key=lambda each: (-self._done[each], each))
        for position in by_age:
            begins = max(start, self._ready[position])
            if waiting > 0 and begins < end:
                waiting -= 1
                events.append((begins + (1 - self._done[position]) * line, position))
        heapq.heapify(events)
        while events and events[0][0] <= end + _MICROSECOND:
            last, position = heapq.heappop(events)
            self.lines -= 1
            if waiting > 0:
                waiting -= 1
                heapq.heappush(events, (last + line, position))
        self._done = [0.0] * len(self._ready)
        for at, position in events:
            self._done[position] = min(max(0.0, 1 - (at - end) * self.rate), 1.0)
        return last if self.lines == 0 else end


def replay(
    window: Window, capacity: Capacity, policy: Policy = laziest_safe, *, record: bool = False
) -> Outcome:
    """Run a window until its batch ends or reaches its deadline."""
    spot, dedicated, outcome = Crew(capacity.rate), Crew(capacity.rate), Outcome()
    spot.lines = window.lines
    now, next_tick, wanted = 0.0, 0.0, 0
    while now < window.seconds and spot.lines + dedicated.lines > 0:
        position = int((now + _ROUNDING) / window.gap)
        market = window.market[min(position, len(window.market) - 1)]
        if len(spot) > market:
            spot.resize(market, now)
        if now >= next_tick - _ROUNDING:
            plan = policy(
                _seen(spot, dedicated, window, now),
                START + timedelta(seconds=now),
                capacity,
                dedicated.starts(now),
            )
            _apply(plan, spot, dedicated)
            wanted, next_tick = plan.replicas, now + capacity.tick
        spot.resize(
            desired_replicas(spot.lines, SPOT_ROWS_PER_REPLICA, max_replicas=market),
            now + capacity.cold_start,
        )
        dedicated.resize(wanted, now + capacity.cold_start)
        if record:
            outcome.history.append(
                Moment(now, market, len(spot), len(dedicated), spot.lines + dedicated.lines)
            )
        until = min((position + 1) * window.gap, next_tick, window.seconds)
        ended = _advance(spot, dedicated, now, until)
        if spot.lines + dedicated.lines == 0:
            outcome.ended = ended
        now = until
    outcome.spot, outcome.dedicated = spot.paid, dedicated.paid
    return outcome


def _advance(spot: Crew, dedicated: Crew, now: float, until: float) -> float:
    """Advance both pools; return the end of the last request. Replicas are not paid after it."""
    held = spot.lines, dedicated.lines
    ends = [
        crew.run(now, until) if lines else now
        for crew, lines in zip((spot, dedicated), held, strict=True)
    ]
    for crew, lines in zip((spot, dedicated), held, strict=True):
        if not lines:
            crew.paid += len(crew) * (until - now)
    ended = max(ends)
    if spot.lines + dedicated.lines == 0:
        for crew in (spot, dedicated):
            crew.paid -= len(crew) * (until - ended)
    return ended


def _seen(spot: Crew, dedicated: Crew, window: Window, now: float) -> OpenBatch:
    running_spot, running_dedicated = spot.in_hand(now), dedicated.in_hand(now)
    return OpenBatch(
        BATCH,
        START + timedelta(seconds=window.seconds),
        spot=spot.lines - running_spot,
        running_spot=running_spot,
        dedicated=dedicated.lines - running_dedicated,
        running_dedicated=running_dedicated,
    )


def _apply(plan: Plan, spot: Crew, dedicated: Crew) -> None:
    moved = sum(move.lines for move in plan.escalations) - sum(move.lines for move in plan.returns)
    taken = sum(move.lines for move in plan.revocations)
    spot.lines -= moved
    spot.give_up(taken)
    dedicated.lines += moved + taken


def all_dedicated(window: Window, capacity: Capacity) -> float:
    """Return the seconds that all dedicated replicas, started at once, need for the batch."""
    if capacity.replicas == 0:
        return math.inf
    return capacity.cold_start + math.ceil(window.lines / capacity.replicas) / capacity.rate


def omniscient(window: Window, capacity: Capacity, price_ratio: float) -> float:
    """Return a lower bound of the cost of any schedule, even one that knows the market.

    A spot replica available for a session runs requests for its length less the cold start;
    treating the market as a stack gives the longest sessions. Work fills the cheapest sessions
    first, in fractions, and the rest runs on dedicated replicas that live for the whole window.
    """
    start = capacity.cold_start
    offers = [(price_ratio * window.seconds / max(window.seconds - start, 1e-9), math.inf)]
    offers += [
        (length / (length - start), (length - start) * capacity.rate)
        for length in _sessions(window)
        if length > start
    ]
    cost, left = 0.0, float(window.lines)
    for price, lines in sorted(offers):
        run = min(left, lines)
        cost += price * run / capacity.rate
        left -= run
        if left <= 0:
            break
    return cost


def _sessions(window: Window) -> list[float]:
    """Return the lengths of the market's sessions in seconds, with the market as a stack."""
    begun: list[float] = []
    lengths = []
    for position, places in enumerate([*window.market, 0]):
        at = min(position * window.gap, window.seconds)
        while len(begun) > places:
            lengths.append(at - begun.pop())
        begun += [at] * (places - len(begun))
    return lengths

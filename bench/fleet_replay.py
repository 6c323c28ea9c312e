"""Several fleets, each on a market of its own, under one scheduler: its plans and its fallback.

Rates are measured as workers report them: each tick folds what each dedicated replica ended while it
was full, and plans with the lower bound. The seconds until a pool works, and whether it is paused, are
those that the scheduler itself would read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from bench.spot_replay import START, STEADY, FleetRun, Outcome, Part, Steps
from lowtide.core.pools import Pool
from lowtide.planning.demand import Rate
from lowtide.planning.escalation import plan_tick
from lowtide.planning.fallback import fall_back
from lowtide.planning.state import SchedulerState, decide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowtide.core.ids import BatchId
    from lowtide.planning.demand import Capacity
    from lowtide.planning.fallback import FleetMove

MODEL = "m"


@dataclass(frozen=True, slots=True)
class FleetSetting:
    """A fleet: its market, its capacity, the work it begins with, and what happens to it.

    `lines` are its requests of each batch, by number. `speed` is the true factor of its configured
    rate. Its dedicated pool is paused from `paused[0]` to `paused[1]` seconds. `prices` are those of a
    second of a spot and a dedicated replica.
    """

    name: str
    capacity: Capacity
    market: Steps
    lines: Mapping[int, int]
    prices: tuple[float, float] = (1.0, 3.0)
    speed: Steps = STEADY
    paused: tuple[float, float] | None = None
    fallback: str | None = None


@dataclass(slots=True)
class _Promise:
    """The last tick at which the bound held for a batch: the rate counted on, and usage until then."""

    rate: float
    lost: float
    worked: float
    done: float


@dataclass(slots=True)
class FleetOutcome:
    """The usage of a fleet, its requests that were late, by batch, and those that were promised.

    A late batch is a `broken` promise if, since the last tick at which its bound held, neither the true
    rate of the fleet's dedicated replicas nor the measured one fell below what that bound counted on.
    """

    usage: Outcome
    prices: tuple[float, float]
    broken: set[int] = field(default_factory=set)

    @property
    def cost(self) -> float:
        """The cost of the replica-seconds of both pools."""
        return self.usage.spot * self.prices[0] + self.usage.dedicated * self.prices[1]


class _Fleet:
    """A fleet, with the rate that was measured and the promises that were made."""

    def __init__(self, setting: FleetSetting, due: Mapping[int, float]) -> None:
        self.setting = setting
        self._due = due
        parts = [Part(number, due[number], lines) for number, lines in setting.lines.items()]
        self.run = FleetRun(setting.capacity, setting.market, parts, setting.speed)
        self.outcome = FleetOutcome(self.run.outcome, setting.prices)
        self._rate = Rate()
        self._promises: dict[int, _Promise] = {}

    def state(self, now: float) -> SchedulerState:
        """Return what a tick reads; folds what the replicas reported."""
        paused = self._is_paused(now)
        if paused:
            self.run.dedicated.resize(0, now)
        self._rate = self._rate.fold(self.run.dedicated.samples())
        starts = self.run.dedicated.starts(now)
        cold_start = self.setting.capacity.cold_start
        return SchedulerState(
            START + timedelta(seconds=now),
            tuple(self.run.batches(now)),
            present=sum(start == 0.0 for start in starts),
            wished=tuple(START + timedelta(seconds=now + each - cold_start) for each in starts),
            models=frozenset({MODEL}),
            rates={MODEL: self._rate} if self._rate.seconds else {},
            paused=frozenset({Pool.DEDICATED}) if paused else frozenset(),
            fleet=self.setting.name,
        )

    def _is_paused(self, now: float) -> bool:
        paused = self.setting.paused
        return paused is not None and paused[0] <= now < paused[1]

    def promise(self, state: SchedulerState) -> None:
        """Note the batches whose bound holds at this tick."""
        capacity = state.measured(self.setting.capacity)
        self.run.counted_on = capacity.line_rate
        exact = replace(capacity, margin=capacity.lost)
        starts = state.starts(capacity.cold_start)
        at_risk = plan_tick(state.batches, state.now, exact, starts).at_risk
        for batch in state.batches:
            if capacity.replicas == 0:
                self._promises.pop(batch.id.int, None)
            elif batch.id not in at_risk:
                usage = self.run.dedicated.worked, self.run.done
                promise = _Promise(capacity.line_rate, capacity.lost, *usage)
                self._promises[batch.id.int] = promise

    def advance(self, now: float, tick: float) -> None:
        """Run until the next tick, and judge the batches that were late."""
        known = set(self.run.outcome.late)
        self.run.run(now, tick)
        for number in set(self.run.outcome.late) - known:
            promise = self._promises.get(number)
            if promise is not None and self._was_as_fast(promise):
                self.outcome.broken.add(number)

    def _was_as_fast(self, promise: _Promise) -> bool:
        kept_free = self.setting.capacity.replicas * promise.lost
        seconds = self.run.dedicated.worked - promise.worked - kept_free
        return self.run.done - promise.done >= promise.rate * seconds

    def leave(self, batch: BatchId, lines: int, now: float) -> None:
        """Give up waiting requests to another fleet."""
        waiting = next(each for each in self.run.batches(now) if each.id == batch)
        self.run.withdraw(waiting, lines)

    def join(self, batch: BatchId, lines: int) -> None:
        """Take over requests of another fleet, for dedicated."""
        self.run.join(batch.int, self._due[batch.int], lines)


def replay_fleets(
    settings: Sequence[FleetSetting], due: Mapping[int, float], tick: float
) -> dict[str, FleetOutcome]:
    """Run fleets until all batches have ended or reached their deadlines, `due` in seconds."""
    fleets = {setting.name: _Fleet(setting, due) for setting in settings}
    capacities = {setting.name: setting.capacity for setting in settings}
    fallbacks = {each.name: each.fallback for each in settings if each.fallback is not None}
    now = 0.0
    while now < max(due.values()) and any(fleet.run.lines for fleet in fleets.values()):
        states = {name: fleet.state(now) for name, fleet in fleets.items()}
        plans = {name: decide(state, capacities[name]) for name, state in states.items()}
        for name, fleet in fleets.items():
            fleet.promise(states[name])
            fleet.run.apply(plans[name])
        moves: list[FleetMove] = fall_back(states, plans, capacities, fallbacks)
        for move in moves:
            fleets[move.source].leave(move.batch, move.lines, now)
            fleets[move.target].join(move.batch, move.lines)
        for fleet in fleets.values():
            fleet.advance(now, now + tick)
        now += tick
    return {name: fleet.outcome for name, fleet in fleets.items()}

"""Scenarios of several fleets: apart from each other, with a fallback, and with rates that move."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from bench.fleet_replay import FleetSetting, replay_fleets
from bench.spot_replay import Steps
from lowtide.planning.demand import Capacity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.fleet_replay import FleetOutcome
    from bench.spot_traces import Trace

TICK = 300.0
SPEED_GAP = 600.0
"""Seconds between changes of the true rate."""
SHARED = 100
"""The batch of which each fleet has a part."""
PRICES = {"a": (1.0, 3.0), "b": (1.0, 2.0), "c": (1.0, 4.0)}
CAPACITIES = {
    "a": Capacity(rate=0.5, replicas=4, cold_start=180.0, margin=0.0, tick=TICK),
    "b": Capacity(rate=1.0, replicas=8, cold_start=300.0, margin=0.0, tick=TICK),
    "c": Capacity(rate=0.25, replicas=16, cold_start=60.0, margin=0.0, tick=TICK),
}


@dataclass(slots=True)
class Tally:
    """The results of a fleet in one scenario, by window and part of a batch.

    `misses` are parts that were late although the bound promised them, `late` the others that could
    have been in time, `infeasible` ones that could not. Costs are relative to all work on the fleet's
    own dedicated replicas.
    """

    costs: list[float] = field(default_factory=list)
    parts: int = 0
    misses: int = 0
    late: int = 0
    infeasible: int = 0
    moved: int = 0

    @property
    def cost(self) -> float:
        """The mean cost."""
        return fmean(self.costs)


@dataclass(frozen=True, slots=True)
class Draw:
    """The markets of one window, and the generator of everything else that is random in it."""

    markets: Mapping[str, Steps]
    seconds: float
    rng: random.Random

    @property
    def due(self) -> dict[int, float]:
        """The deadlines: half of the window for batches of one fleet, all of it for the shared one."""
        own = {number: self.seconds / 2 for number in range(1, len(CAPACITIES) + 1)}
        return {**own, SHARED: self.seconds}


def draws(traces: Sequence[Trace], windows: int, seconds: float, seed: int) -> Iterator[Draw]:
    """Yield windows in which each fleet has another trace, from a random point on."""
    rng = random.Random(f"{seed} fleets")  # noqa: S311
    for _ in range(windows):
        chosen = (
            rng.sample(traces, len(CAPACITIES)) if len(traces) >= 3 else rng.choices(traces, k=3)
        )
        markets = {}
        for (name, capacity), recorded in zip(CAPACITIES.items(), chosen, strict=True):
            trace = recorded.scaled_to(capacity.replicas)
            length = math.ceil(seconds / trace.gap)
            start = rng.randrange(max(1, len(trace.places) - length + 1))
            markets[name] = Steps(trace.cut(start, length), trace.gap)
        yield Draw(markets, seconds, rng)


def fleets(draw: Draw, loads: Mapping[str, float]) -> list[FleetSetting]:
    """Return fleets with `loads` of their dedicated pools, 40% of it due at half of the window."""
    settings = []
    for number, (name, load) in enumerate(loads.items(), 1):
        capacity = CAPACITIES[name]
        lines = load * capacity.speed * draw.seconds
        own, shared = max(1, int(0.4 * lines)), max(1, int(0.6 * lines))
        work = {number: own, SHARED: shared}
        settings.append(FleetSetting(name, capacity, draw.markets[name], work, PRICES[name]))
    return settings


def drop(draw: Draw, factor: float) -> Steps:
    """Return a speed that changes once, at a random time."""
    at = int(draw.rng.uniform(0.1, 0.9) * draw.seconds / SPEED_GAP)
    return Steps([1.0] * at + [factor], SPEED_GAP)


def walk(draw: Draw, step: float = 0.03) -> Steps:
    """Return a speed that walks at random between half and one and a half times the configured one."""
    speed, values = 1.0, []
    for _ in range(math.ceil(draw.seconds / SPEED_GAP)):
        values.append(speed)
        speed = min(1.5, max(0.5, speed * (1 + draw.rng.uniform(-step, step))))
    return Steps(values, SPEED_GAP)


def seconds_of(setting: FleetSetting, until: float) -> float:
    """Return the seconds at full rate that a dedicated replica, started at once, can work."""
    start = setting.capacity.cold_start
    worked, at = 0.0, start
    while at < until:
        end = min(setting.speed.end(at), until)
        pauses = [setting.paused] if setting.paused else []
        away = sum(max(0.0, min(end, b + start) - max(at, a)) for a, b in pauses)
        worked += (end - at - away) * setting.speed.at(at)
        at = end
    return worked


def feasible(
    settings: Sequence[FleetSetting], due: Mapping[int, float]
) -> dict[tuple[str, int], bool]:
    """Return whether each part could be in time on dedicated, by true rates.

    A fleet with a fallback may use what the fallback's own work leaves there.
    """
    spare: dict[tuple[str, float], int] = {}
    verdicts = {}
    for setting in sorted(settings, key=lambda each: each.fallback is not None):
        demand = 0
        for number, lines in sorted(setting.lines.items(), key=lambda each: due[each[0]]):
            demand += lines
            worked = seconds_of(setting, due[number]) * setting.capacity.rate
            room = setting.capacity.replicas * math.floor(worked + 1e-6)
            spare[setting.name, due[number]] = room - demand
            room += spare.get((setting.fallback or "", due[number]), 0)
            verdicts[setting.name, number] = demand <= room
    return verdicts


def _apart(load: float) -> Callable[[Draw], list[FleetSetting]]:
    return lambda draw: fleets(draw, dict.fromkeys(CAPACITIES, load))


def _short(fallback: str | None, load: float = 1.3) -> Callable[[Draw], list[FleetSetting]]:
    """Fleet a has too few dedicated replicas."""

    def settings(draw: Draw) -> list[FleetSetting]:
        a, b = fleets(draw, {"a": load, "b": 0.4})
        return [replace(a, fallback=fallback), b]

    return settings


def _paused(fallback: str | None) -> Callable[[Draw], list[FleetSetting]]:
    """Fleet a's dedicated pool is paused for a third of the window, at the worst of times."""

    def settings(draw: Draw) -> list[FleetSetting]:
        a, b = fleets(draw, {"a": 0.6, "b": 0.4})
        begin = draw.rng.uniform(0.2, 0.6) * draw.seconds // TICK * TICK
        paused = begin, begin + draw.seconds / 3
        return [replace(a, fallback=fallback, paused=paused), b]

    return settings


def _moving(
    speed: Callable[[Draw], Steps], *, margin: float = 0.0, fallback: str | None = None
) -> Callable[[Draw], list[FleetSetting]]:
    """The true rate of each fleet moves."""

    def settings(draw: Draw) -> list[FleetSetting]:
        return [
            replace(
                each,
                speed=speed(draw),
                capacity=replace(each.capacity, margin=margin),
                fallback=fallback if each.name == "a" else None,
            )
            for each in fleets(draw, dict.fromkeys(CAPACITIES, 0.6))
        ]

    return settings


SCENARIOS: dict[str, Callable[[Draw], list[FleetSetting]]] = {
    "apart, load 0.20": _apart(0.2),
    "apart, load 0.60": _apart(0.6),
    "apart, load 0.95": _apart(0.95),
    "a is short, no fallback": _short(None),
    "a is short, falls back to b": _short("b"),
    "a is paused, no fallback": _paused(None),
    "a is paused, falls back to b": _paused("b"),
    "rates rise to 1.5": _moving(lambda draw: drop(draw, 1.5)),
    "rates fall to 0.9": _moving(lambda draw: drop(draw, 0.9)),
    "rates fall to 0.6": _moving(lambda draw: drop(draw, 0.6)),
    "rates walk": _moving(walk),
    "rates walk, margin of 30 min": _moving(walk, margin=1800.0),
    "rates walk, a falls back to b": _moving(walk, fallback="b"),
}


def run_scenario(
    scenario: Callable[[Draw], list[FleetSetting]], drawn: Sequence[Draw]
) -> dict[str, Tally]:
    """Run a scenario in each window; return the results by fleet."""
    tallies: dict[str, Tally] = {}
    for draw in drawn:
        settings = scenario(draw)
        outcomes = replay_fleets(settings, draw.due, TICK)
        can_hold = feasible(settings, draw.due)
        for setting in settings:
            tally = tallies.setdefault(setting.name, Tally())
            _add(tally, setting, outcomes, can_hold)
    return tallies


def _add(
    tally: Tally,
    setting: FleetSetting,
    outcomes: Mapping[str, FleetOutcome],
    can_hold: Mapping[tuple[str, int], bool],
) -> None:
    outcome = outcomes[setting.name]
    tally.costs.append(outcome.cost / _whole(setting))
    tally.moved += outcome.moved
    for number in setting.lines:
        tally.parts += 1
        places = [setting.name] if number == SHARED else list(outcomes)
        is_late = any(number in outcomes[place].usage.late for place in places)
        is_broken = any(number in outcomes[place].broken for place in places)
        tally.infeasible += not can_hold[setting.name, number]
        tally.misses += is_broken
        tally.late += is_late and not is_broken and can_hold[setting.name, number]


def _whole(setting: FleetSetting) -> float:
    """Return the cost of all its work on its own dedicated replicas from the start."""
    capacity = setting.capacity
    lines = math.ceil(sum(setting.lines.values()) / capacity.replicas)
    return setting.prices[1] * capacity.replicas * (capacity.cold_start + lines / capacity.rate)

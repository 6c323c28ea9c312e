"""Scenarios of several fleets: apart from each other, with a fallback, and with rates that move."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.fleet_replay import FleetSetting
from bench.spot_replay import Steps
from lowtide.planning.demand import Capacity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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


@dataclass(frozen=True, slots=True)
class Draw:
    """The markets of one window, and the generator of everything else that is random in it."""

    markets: Mapping[str, Steps]
    seconds: float
    rng: random.Random

    @property
    def due(self) -> dict[int, float]:
        """The deadlines: half of the window for batches of one fleet, all of it for the shared one."""
        own = dict.fromkeys(range(1, len(CAPACITIES) + 1), self.seconds / 2)
        return {**own, SHARED: self.seconds}


Scenario = Callable[[Draw], list[FleetSetting]]
"""The fleets of a window."""


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


def _apart(load: float) -> Scenario:
    return lambda draw: fleets(draw, dict.fromkeys(CAPACITIES, load))


def _short(fallback: str | None, load: float = 1.3) -> Scenario:
    """Fleet a has too few dedicated replicas."""

    def settings(draw: Draw) -> list[FleetSetting]:
        a, b = fleets(draw, {"a": load, "b": 0.4})
        return [replace(a, fallback=fallback), b]

    return settings


def _paused(fallback: str | None) -> Scenario:
    """Fleet a's dedicated pool is paused for a third of the window, at a random time."""

    def settings(draw: Draw) -> list[FleetSetting]:
        a, b = fleets(draw, {"a": 0.6, "b": 0.4})
        begin = draw.rng.uniform(0.2, 0.6) * draw.seconds // TICK * TICK
        paused = begin, begin + draw.seconds / 3
        return [replace(a, fallback=fallback, paused=paused), b]

    return settings


def _moving(
    speed: Callable[[Draw], Steps], *, margin: float = 0.0, fallback: str | None = None
) -> Scenario:
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


SCENARIOS: dict[str, Scenario] = {
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
    "rates walk, margin of 2 h": _moving(walk, margin=7200.0),
    "rates walk, a falls back to b": _moving(walk, fallback="b"),
}

"""Fleets over time, on random markets: no promise is broken, and no fleet disturbs another."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fleet_replay import FleetSetting, replay_fleets
from bench.spot_replay import STEADY, Steps
from lowtide.planning.demand import Capacity

HOUR = 3600.0
DUE = {1: 2 * HOUR, 2: 2 * HOUR, 3: 3 * HOUR, 100: 4 * HOUR}
_LOADS = {"a": (0.5, 2.0), "b": (0.6, 1.3), "c": (0.2, 1.0)}
OWN = {"a": 1, "b": 2, "c": 3}

_markets = st.builds(
    Steps,
    st.lists(st.sampled_from([0, 0, 0, 1, 8]), min_size=1, max_size=20),
    st.sampled_from([195.0, 600.0]),
)
_speeds = st.builds(Steps, st.lists(st.floats(0.4, 1.6), min_size=1, max_size=24), st.just(600.0))
_pauses = st.none() | st.tuples(st.floats(0, 3 * HOUR), st.floats(600.0, 4 * HOUR))


@st.composite
def _fleet(draw: st.DrawFn, name: str, tick: float, loads: tuple[float, float]) -> FleetSetting:
    capacity = Capacity(
        rate=draw(st.sampled_from([0.02, 0.1, 0.5])),
        replicas=draw(st.integers(1, 6)),
        cold_start=draw(st.sampled_from([0.0, 60.0, 300.0])),
        margin=60.0,
        tick=tick,
    )
    work = capacity.speed * draw(st.floats(*loads))
    lines = {OWN[name]: int(work * DUE[OWN[name]] / 2), 100: int(work * DUE[100] / 2)}
    return FleetSetting(name, capacity, draw(_markets), lines)


def _held_alone(setting: FleetSetting) -> bool:
    """Return whether the fleet's dedicated replicas hold its deadlines, whatever spot does."""
    capacity, demand = setting.capacity, 0
    for number, lines in sorted(setting.lines.items(), key=lambda part: DUE[part[0]]):
        demand += lines
        left = DUE[number] - capacity.lost - capacity.cold_start - capacity.tick
        if demand > capacity.speed * left:
            return False
    return True


@settings(max_examples=60)
@given(data=st.data(), tick=st.sampled_from([60.0, 300.0]), moves=st.booleans())
def test_fallback_breaks_no_promise(data: st.DataObject, tick: float, moves: bool) -> None:
    a, b, c = (data.draw(_fleet(name, tick, _LOADS[name])) for name in OWN)
    a = replace(a, fallback="b", paused=data.draw(_pauses))
    c = replace(c, fallback="b", speed=data.draw(_speeds) if moves else STEADY)
    outcomes = replay_fleets([a, b, c], DUE, tick)
    assert all(outcome.broken == set() for outcome in outcomes.values())
    if _held_alone(b):
        assert OWN["b"] not in outcomes["b"].usage.late
        assert outcomes["b"].usage.late == {}


@settings(max_examples=30)
@given(data=st.data(), tick=st.sampled_from([60.0, 300.0]))
def test_fleet_runs_as_if_it_were_alone(data: st.DataObject, tick: float) -> None:
    fleets = [data.draw(_fleet(name, tick, (0.0, 1.2))) for name in OWN]
    fleets[0] = replace(fleets[0], speed=data.draw(_speeds), paused=data.draw(_pauses))
    together = replay_fleets(fleets, DUE, tick)
    for fleet in fleets:
        assert replay_fleets([fleet], DUE, tick)[fleet.name] == together[fleet.name]


@settings(max_examples=40)
@given(
    data=st.data(),
    speeds=st.lists(st.floats(0.4, 3.0), min_size=1, max_size=10),
    tick=st.sampled_from([60.0, 300.0]),
)
def test_rates_that_only_rise_make_nothing_late(
    data: st.DataObject, speeds: list[float], tick: float
) -> None:
    fleet = data.draw(_fleet("a", tick, (0.0, 1.0)))
    slowest = fleet.capacity.rate * min(speeds)
    fleet = replace(
        fleet,
        capacity=replace(fleet.capacity, rate=slowest),
        lines={number: int(lines * min(speeds)) for number, lines in fleet.lines.items()},
        speed=Steps(sorted(each / min(speeds) for each in speeds), 900.0),
    )
    if _held_alone(fleet):
        assert replay_fleets([fleet], DUE, tick)["a"].usage.late == {}

"""The table of several fleets: costs, and batches that were late, by scenario.

A batch's part in a fleet is a miss if it was late although the bound promised it (docs/adr/0010), and
late if nothing promised it any more: its fleet became slower, was paused, or had too few replicas. It is
infeasible if all dedicated replicas from the start, at their true rates and with those that its fallback
has to spare, could not end it in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from operator import ne
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bench.fleet_replay import replay_fleets
from bench.fleet_scenarios import SCENARIOS, SHARED, TICK, draws, feasible
from bench.spot_replay import STEADY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.fleet_replay import FleetOutcome, FleetSetting
    from bench.fleet_scenarios import Draw, Scenario
    from bench.spot_traces import Trace

HEAD = (
    "| fleets a / b / c | cost | late requests, % | misses | late | infeasible | parts |\n"
    + "|---" * 7
    + "|"
)


@dataclass(slots=True)
class Tally:
    """The results of a fleet: costs relative to all of its work on its own dedicated replicas."""

    costs: list[float] = field(default_factory=list)
    parts: int = 0
    misses: int = 0
    late: int = 0
    infeasible: int = 0
    requests: int = 0
    late_requests: int = 0

    def add(
        self, setting: FleetSetting, outcomes: Mapping[str, FleetOutcome], held: set[int]
    ) -> None:
        """Add a window; `held` are the batches that were feasible."""
        self.costs.append(outcomes[setting.name].cost / _whole(setting))
        for number, lines in setting.lines.items():
            places = [setting.name] if number == SHARED else list(outcomes)
            late = sum(outcomes[place].usage.late.get(number, 0) for place in places)
            is_broken = any(number in outcomes[place].broken for place in places)
            self.parts += 1
            self.misses += is_broken
            self.late += late > 0 and not is_broken and number in held
            self.infeasible += number not in held
            self.requests += lines
            self.late_requests += late


def print_fleets(
    traces: Sequence[Trace], windows: int, seconds: float, seed: int, *, quiet: bool
) -> dict[str, Any]:
    """Run every scenario, and print its row unless `quiet`; return the figures of all."""
    if not quiet:
        print(f"{windows} windows of {seconds / 3600:g} h, each fleet on a trace of its own")
        print(HEAD)
    misses = mixed = 0
    late = {}
    for name, scenario in SCENARIOS.items():
        tallies, disturbed = run_scenario(scenario, list(draws(traces, windows, seconds, seed)))
        misses += sum(tally.misses for tally in tallies.values())
        mixed += disturbed
        late[name] = {fleet: tally.late for fleet, tally in tallies.items()}
        if not quiet:
            print(_row(name, list(tallies.values())), flush=True)
    if not quiet:
        print(f"Fleets that cost more or less than alone: {mixed}")
    return {"windows": windows, "misses": misses, "disturbed": mixed, "late": late}


def run_scenario(scenario: Scenario, drawn: Sequence[Draw]) -> tuple[dict[str, Tally], int]:
    """Run a scenario in each window; return the results by fleet.

    And how many runs of independent fleets of steady rates differed from those of the fleet alone.
    """
    tallies: dict[str, Tally] = {}
    disturbed = 0
    for draw in drawn:
        settings = scenario(draw)
        outcomes = replay_fleets(settings, draw.due, TICK)
        can_hold = feasible(settings, draw.due)
        for setting in settings:
            held = {number for number in setting.lines if can_hold[setting.name, number]}
            tallies.setdefault(setting.name, Tally()).add(setting, outcomes, held)
        if all(each.fallback is None and each.speed is STEADY for each in settings):
            alone = [replay_fleets([each], draw.due, TICK)[each.name] for each in settings]
            disturbed += sum(map(ne, alone, outcomes.values()))
    return tallies, disturbed


def _row(name: str, tallies: Sequence[Tally]) -> str:
    costs = " / ".join(f"{fmean(tally.costs):.3f}" for tally in tallies)
    shares = " / ".join(f"{100 * each.late_requests / each.requests:.2f}" for each in tallies)
    counts = [
        " / ".join(str(getattr(tally, column)) for tally in tallies)
        for column in ("misses", "late", "infeasible")
    ]
    return f"| {name} | {costs} | {shares} | {' | '.join(counts)} | {tallies[0].parts} each |"


def _whole(setting: FleetSetting) -> float:
    capacity = setting.capacity
    lines = math.ceil(sum(setting.lines.values()) / capacity.replicas)
    return setting.prices[1] * capacity.replicas * (capacity.cold_start + lines / capacity.rate)

"""The replay of several fleets: fallback, pauses, rates that move, and promises that are broken."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.fleet_replay import FleetSetting, replay_fleets
from bench.fleet_scenarios import feasible
from bench.spot_replay import Steps
from lowtide.planning.demand import Capacity
from lowtide.planning.escalation import Plan

if TYPE_CHECKING:
    from lowtide.planning.state import SchedulerState

ROOT = Path(__file__).resolve().parents[2]
DUE = {1: 3600.0, 2: 3600.0}
NO_SPOT = Steps([0])
TWO = Capacity(rate=0.5, replicas=2, cold_start=60.0, margin=30.0, tick=60.0)
# A third of what b can run, so that half of a's work fits beside it.
B = FleetSetting("b", TWO, NO_SPOT, {2: 1100})


def _late(*settings: FleetSetting) -> dict[str, dict[int, int]]:
    return {name: each.usage.late for name, each in replay_fleets(settings, DUE, 60.0).items()}


def test_fleet_that_is_short_is_late_without_fallback_only() -> None:
    short = FleetSetting("a", TWO, NO_SPOT, {1: 5000})
    assert _late(short, B)["a"] != {}
    assert _late(replace(short, fallback="b"), B) == {"a": {}, "b": {}}


def test_fleet_that_is_paused_is_late_without_fallback_only() -> None:
    paused = FleetSetting("a", TWO, NO_SPOT, {1: 1500}, paused=(600.0, 3600.0))
    assert _late(paused, B)["a"] == {1: 1500}
    assert _late(replace(paused, fallback="b"), B) == {"a": {}, "b": {}}


@pytest.mark.parametrize(
    ("lines", "fallback", "held"),
    [
        pytest.param(3540, None, True, id="all that two replicas can run"),
        pytest.param(3541, None, False, id="one more"),
        pytest.param(3540 + 2440, "b", True, id="all that both fleets can run"),
        pytest.param(3540 + 2441, "b", False, id="one more than both can"),
    ],
)
def test_fallback_counts_what_its_own_work_leaves(
    lines: int, fallback: str | None, held: bool
) -> None:
    setting = FleetSetting("a", TWO, NO_SPOT, {1: lines}, fallback=fallback)
    assert feasible([setting, B], DUE)["a", 1] is held


def test_feasible_work_follows_the_true_rate() -> None:
    slow = FleetSetting("a", TWO, NO_SPOT, {1: 3000}, speed=Steps([1.0, 0.5], 1800.0))
    assert not feasible([slow], DUE)["a", 1]
    assert feasible([replace(slow, lines={1: 2640})], DUE)["a", 1]


def test_late_fall_of_the_rate_breaks_no_promise() -> None:
    slow = FleetSetting("a", TWO, NO_SPOT, {1: 3000}, speed=Steps([1.0, 0.5], 1800.0))
    outcome = replay_fleets([slow], DUE, 60.0)["a"]
    assert outcome.usage.late.keys() == {1}
    assert outcome.broken == set()


def test_plan_that_starts_no_replicas_breaks_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(_state: SchedulerState, _capacity: Capacity) -> Plan:
        return Plan()

    monkeypatch.setattr("bench.fleet_replay.decide", idle)
    assert replay_fleets([B], DUE, 60.0)["b"].broken == {2}


def test_table_of_fleets_ends_with_json_line(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text('{"metadata": {"gap_seconds": 300}, "data": [4, 0, 1]}')
    command = [sys.executable, "-m", "bench.scheduler", "--fleets", "--traces", str(tmp_path)]
    process = subprocess.run(
        [*command, "--windows", "1", "--hours", "6"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    told = json.loads(process.stdout.splitlines()[-1])
    assert (told["misses"], told["disturbed"]) == (0, 0)
    rows = [line for line in process.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(told["late"])

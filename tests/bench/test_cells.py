"""The simulation of many cells: nothing is lost, seeds decide everything, no run beats the bound."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.cell_bounds import most_in_time, omniscient
from bench.cell_fronts import herding
from bench.cell_lists import DISTURBANCES, TIMEOUT, in_turn, lists
from bench.cell_markets import spread, synthetic, zones
from bench.cell_run import Batch, Outage, Run, Work, batches
from bench.cell_world import SLOT, STEP, Market, World
from lowtide.planning.demand import Capacity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.cell_run import Outcome

ROOT = Path(__file__).resolve().parents[2]
CAPACITY = Capacity(rate=10.0, replicas=150, cold_start=180.0, margin=60.0, tick=300.0)
CELLS = 16
WORK = Work(rate=900.0 * CELLS, seconds=7200.0, mean=200_000.0)
OUTAGE = Outage(at=3600.0, seconds=3600.0, share=0.25)


def _market(*places: int, gap: float = 600.0, spot: float = 1.0) -> Market:
    return Market("zone", np.array(places, dtype=np.int64), gap, spot, 3.0, 0.0)


def _markets(seed: int) -> list[Market]:
    return spread(zones(synthetic(seed), 9.0, seed), CELLS)


def _run(seed: int, outage: Outage | None = None) -> tuple[Run, Outcome]:
    run = Run(_markets(seed), CAPACITY, WORK, seed, outage=outage)
    return run, run.run()


@pytest.fixture(scope="module", params=["none", "waits", "evacuated"])
def ended(request: pytest.FixtureRequest) -> tuple[Run, Outcome]:
    """Return a run that has ended, for each thing that an outage may do."""
    outages = {"none": None, "waits": OUTAGE, "evacuated": replace(OUTAGE, evacuate=600.0)}
    return _run(3, outages[request.param])


def test_every_request_ends_once_or_is_late(ended: tuple[Run, Outcome]) -> None:
    run, outcome = ended
    assert outcome.created == pytest.approx(sum(batch.lines for batch in run.batches))
    assert outcome.created > 0.9 * WORK.rate * WORK.seconds
    assert outcome.left <= 1.0
    ended_and_late = outcome.done + outcome.late + outcome.left
    assert ended_and_late == pytest.approx(outcome.created + outcome.repeated, abs=1.0)


def test_no_run_costs_less_than_the_bound(ended: tuple[Run, Outcome]) -> None:
    run, outcome = ended
    bound = omniscient(run.world.markets, CAPACITY, run.batches, outcome.useful)
    assert 0 < bound <= outcome.cost
    assert bound < 1.8 * outcome.cost


def test_scheduler_keeps_its_promises() -> None:
    outcome = _run(4)[1]
    assert outcome.planned > 0
    assert outcome.missed == 0.0


def test_seed_decides_everything() -> None:
    first, again, other = _run(1)[1], _run(1)[1], _run(2)[1]
    assert (first.cost, first.done, first.on_spot) == (again.cost, again.done, again.on_spot)
    assert first.cost != other.cost


def test_cell_that_is_away_works_on_nothing_and_gets_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Many small batches: fronts try some cells before they hear that these are away.
    run = Run(_markets(3), CAPACITY, replace(WORK, mean=20_000.0), 3, outage=OUTAGE)
    world = run.world
    placed: list[tuple[float, float]] = []
    advance = world.advance

    def watched() -> None:
        if world.away.any():
            done = float(world.done[world.away].sum())
            placed.append((float(world.placed[world.away].sum()), done))
        advance()
        if world.away.any():
            assert float(world.done[world.away].sum()) == placed[-1][1]
            assert world.spot.ready[world.away].sum() == 0
            assert world.dedicated.present[world.away].sum() == 0

    monkeypatch.setattr(world, "advance", watched)
    outcome = run.run()
    assert len(placed) == OUTAGE.seconds / STEP
    assert len({work for work, _ in placed}) == 1
    assert len(outcome.away) == CELLS * OUTAGE.share
    assert outcome.refused > 0
    assert STEP <= outcome.elsewhere <= 30.0


def test_evacuated_batches_leave_the_cells_that_are_away() -> None:
    run, outcome = _run(3, replace(OUTAGE, evacuate=600.0))
    _, waits = _run(3, OUTAGE)
    assert outcome.repeated > 0
    assert waits.repeated == 0
    before = [batch for batch in run.batches if batch.created < OUTAGE.at]
    unfinished = [batch for batch in before if batch.cell in outcome.away and run.is_late(batch)]
    assert all(batch.slot * SLOT <= OUTAGE.at + 700.0 for batch in unfinished)


def test_skipped_plans_are_empty() -> None:
    world = Run(_markets(5), CAPACITY, WORK, 5).world
    rng = np.random.default_rng(5)
    for batch in batches(WORK, 5):
        # The first cells get most.
        cell = int(rng.integers(CELLS, size=3).min())
        world.add(cell, max(batch.slot, 6), 2 * batch.lines)
    needed = set(world.needs_plan().tolist())
    plans = {cell: world.plan(cell) for cell in range(CELLS)}
    assert 0 < len(needed) < CELLS
    for cell in set(range(CELLS)) - needed:
        plan = plans[cell]
        assert (plan.replicas, plan.escalations, plan.returns) == (0, (), ())
    assert {cell for cell in needed if plans[cell].replicas} == needed


def test_dedicated_holds_a_deadline_without_spot() -> None:
    world = World([_market(0)], CAPACITY, 10)
    world.add(0, 6, 3_000_000.0)
    while world.open.sum() > 1.0:
        if world.now % CAPACITY.tick == 0:
            world.tick()
        world.advance()
    assert world.now <= 6 * SLOT
    assert world.late.sum() == 0.0
    assert not world.overfull.any()
    world.add(0, 9, 10_000_000.0)
    assert world.overfull[0, 9]


@pytest.mark.parametrize(
    ("work", "room", "most"),
    [
        pytest.param({(0, 1): 5.0}, [3.0, 9.0], 3.0, id="late"),
        pytest.param({(0, 2): 5.0}, [3.0, 9.0], 5.0, id="waits"),
        pytest.param({(0, 2): 5.0, (1, 2): 9.0}, [3.0, 9.0], 12.0, id="both"),
        pytest.param({(0, 1): 2.0, (0, 2): 3.0}, [3.0, 1.0], 4.0, id="earliest first"),
        pytest.param({(1, 2): 4.0}, [9.0, 1.0], 1.0, id="not before it is created"),
    ],
)
def test_most_in_time(
    work: dict[tuple[int, int], float], room: Sequence[float], most: float
) -> None:
    matrix = np.zeros((2, 3))
    for place, lines in work.items():
        matrix[place] = lines
    assert most_in_time(matrix, np.array(room)) == most


def test_bound_fills_the_cheapest_spot_first() -> None:
    capacity = replace(CAPACITY, cold_start=900.0)
    markets = [_market(1, spot=1.0), _market(1, spot=2.0), _market(0)]
    # An hour: a spot replica works for 2,700 s of it.
    batch = Batch(0.0, 6, 90_000.0)
    hour = 3600 / 2700
    first, second, third = 27_000, 27_000, 36_000
    cost = (first * 1.0 * hour + second * 2.0 * hour + third * 3.0) / 3600 / 10
    bound = omniscient(markets, capacity, [batch], 90_000.0)
    assert 0.97 * cost <= bound <= cost


@pytest.mark.parametrize(
    ("times", "threads", "end"),
    [
        pytest.param([1.0, 5.0, 2.0], 3, 5.0, id="at once"),
        pytest.param([1.0, 5.0, 2.0], 1, 8.0, id="one by one"),
        pytest.param([3.0, 1.0, 1.0, 1.0], 2, 3.0, id="in turn"),
    ],
)
def test_list_ends_with_its_last_call(times: list[float], threads: int, end: float) -> None:
    assert in_turn(times, threads) == end


def test_one_slow_cell_of_many_slows_most_lists() -> None:
    rows = {(row["cells"], row["disturbed"]): row for row in lists(1, trials=200)}
    well, slow, away, known = (kind.name for kind in DISTURBANCES)
    assert rows[1000, well]["at_once_p99_ms"] < 2 * rows[10, well]["at_once_p99_ms"]
    assert rows[1000, slow]["at_once_p50_ms"] > 1.5 * rows[1000, well]["at_once_p50_ms"]
    assert rows[1000, away]["at_once_p50_ms"] == TIMEOUT
    assert rows[1000, known]["at_once_p99_ms"] < 2 * rows[1000, well]["at_once_p99_ms"]
    assert rows[1000, well]["pool_p50_ms"] > 10 * rows[1000, well]["at_once_p50_ms"]


def test_fronts_do_not_herd() -> None:
    (row,) = herding(200, seed=1, ages=[5.0])
    assert 5 * row["ours_max_s"] < row["least_max_s"]


@pytest.mark.slow
def test_command_ends_with_a_json_line(tmp_path: Path) -> None:
    process = subprocess.run(
        [
            *(sys.executable, "-m", "bench.cells", "--synthetic", "--json", "--cells", "8"),
            *("--hours", "3", "--seeds", "1", "--plot", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    result = json.loads(process.stdout.splitlines()[-1])
    assert process.returncode == bool(result["missed"]), process.stderr
    assert {row["placed"] for row in result["runs"]} >= {"by fronts", "waits", "evacuated"}
    assert all(row["lost"] == 0 and row["cost_vs_omniscient"] >= 1 for row in result["runs"])
    assert {path.name for path in tmp_path.iterdir()} == {"cells-cost.png", "cells-front.png"}

"""The search for concurrency, against a model of an engine that batches, in simulated time."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from bench.batching import Hardware
from lowtide.engines.concurrency import START, TICK, Concurrency
from lowtide.engines.load import EngineLoad, Interval
from tests.engines.closed_loop import ClosedLoop, Run, simulate

MOST = 1024
SIZES = [1, 4, 16, 64, 256, 300, 512]
COMPUTE_BOUND = Hardware(4096, step=0.01, sequence=0.0002)
"""A batch without bound, whose steps take longer with each request: throughput flattens slowly."""
REPORTS = pytest.mark.parametrize("reports", [True, False], ids=["reports", "silent"])
SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])


def best_rate(hardware: Hardware, seed: int = 1) -> float:
    """Return the best rate of fixed limits."""
    size = hardware.max_num_seqs
    limits = {max(1, round(size * factor)) for factor in (1, 1.25, 2) if size * factor <= MOST}
    runs = [simulate(ClosedLoop(hardware, seed=seed), limit, 25) for limit in limits or {MOST}]
    return max(run.rate(8, 25) for run in runs)


def seconds_to(run: Run, rate: float, start: int = 0) -> float:
    """Return the seconds after tick `start` from which five reach 0.97 of a rate."""
    ticks = range(start, len(run.limits) - 6)
    return next(tick - start for tick in ticks if run.rate(tick, tick + 6) >= 0.97 * rate) * TICK


@REPORTS
@SEEDS
@pytest.mark.parametrize("size", SIZES)
def test_engine_is_full_within_a_minute_and_stays_so(size: int, seed: int, reports: bool) -> None:
    hardware = Hardware(size)
    best = best_rate(hardware, seed)
    run = simulate(ClosedLoop(hardware, seed=seed), Concurrency(MOST), 240, reports=reports)
    assert seconds_to(run, best) <= (8 if reports else 30)
    assert run.rate(60, 240) >= 0.98 * best


@REPORTS
def test_limit_of_engine_without_bound_grows_while_that_gains(reports: bool) -> None:
    best = best_rate(COMPUTE_BOUND)
    run = simulate(ClosedLoop(COMPUTE_BOUND), Concurrency(MOST), 240, reports=reports)
    assert seconds_to(run, best) <= 60
    assert run.rate(60, 240) >= 0.97 * best


@SEEDS
@pytest.mark.parametrize("size", SIZES)
def test_reported_queue_ends_growth_at_the_batch_and_a_cushion(size: int, seed: int) -> None:
    run = simulate(ClosedLoop(Hardware(size), seed=seed), Concurrency(MOST), 240)
    assert run.settled.index(True) <= 10
    assert all(size < limit <= 1.3 * size + 2 for limit in run.limits[12:])
    assert sum(a != b for a, b in pairwise(run.limits[12:])) <= 2


@SEEDS
def test_silent_engine_is_probed_gently(seed: int) -> None:
    loop = ClosedLoop(Hardware(256), seed=seed)
    limits = simulate(loop, Concurrency(MOST), 600, reports=False).limits[60:]
    assert all(0.8 * 256 <= limit <= 3 * 256 for limit in limits)
    assert 4 <= sum(a != b for a, b in pairwise(limits)) <= 60


def test_limit_falls_where_throughput_of_a_silent_engine_is_flat() -> None:
    # All of a step is compute: one request is as fast as many.
    flat = Hardware(4096, step=0.0, sequence=0.0005, prefill=0.0)
    run = simulate(ClosedLoop(flat), Concurrency(256), 600, reports=False)
    assert max(run.limits) < 256
    assert run.rate(200, 600) >= 0.97 * best_rate(flat)


@SEEDS
def test_changing_speed_of_engine_costs_no_throughput(seed: int) -> None:
    # As measured with vLLM on an H200: at the same limit, throughput changes by a third for a while.
    rng = Random(seed)  # noqa: S311
    slowness = [factor for _ in range(60) for factor in [rng.uniform(0.75, 1.25)] * 10]
    engine = Hardware(1024, step=0.02)
    fixed = simulate(ClosedLoop(engine, seed=seed), MOST, 600, slowness=slowness)
    run = simulate(ClosedLoop(engine, seed=seed), Concurrency(MOST), 600, slowness=slowness)
    assert set(run.limits[10:]) == {MOST}
    assert run.rate(10, 600) >= 0.99 * fixed.rate(10, 600)


@pytest.mark.parametrize(("before", "after"), [(64, 256), (16, 256), (64, 512)])
@pytest.mark.parametrize(("reports", "within"), [(True, 10), (False, 90)])
def test_larger_batch_is_followed(before: int, after: int, reports: bool, within: int) -> None:
    best = best_rate(Hardware(after))
    loop = ClosedLoop(Hardware(before))
    run = simulate(loop, Concurrency(MOST), 240, reports=reports, sizes={60: after})
    assert seconds_to(run, best, 60) <= within


@pytest.mark.parametrize(("before", "after"), [(256, 64), (512, 16)])
def test_smaller_batch_is_followed(before: int, after: int) -> None:
    run = simulate(ClosedLoop(Hardware(before)), Concurrency(MOST), 100, sizes={60: after})
    assert run.limits[59] > before
    assert all(after < limit <= 1.3 * after + 2 for limit in run.limits[66:])


def test_smaller_batch_of_silent_engine_is_followed() -> None:
    loop = ClosedLoop(Hardware(256))
    run = simulate(loop, Concurrency(MOST), 360, reports=False, sizes={60: 64})
    assert min(run.limits[60:]) <= 192
    assert run.rate(90, 360) >= 0.97 * best_rate(Hardware(64))


@pytest.mark.parametrize("size", SIZES)
def test_limit_that_was_found_before_fills_the_engine_at_once(size: int) -> None:
    hardware = Hardware(size)
    before = simulate(ClosedLoop(hardware, seed=2), Concurrency(MOST), 60).limits[-1]
    run = simulate(ClosedLoop(hardware), Concurrency(MOST, start=before), 60)
    assert run.settled.index(True) <= 3
    assert all(size < limit <= 1.3 * size + 2 for limit in run.limits)
    # The first second reads prompts.
    assert run.rate(1, 6) >= 0.97 * best_rate(hardware)


@pytest.mark.parametrize(("before", "after"), [(576, 64), (576, 16), (280, 4), (36, 512)])
def test_limit_of_another_engine_is_left_as_fast_as_a_search_takes(before: int, after: int) -> None:
    run = simulate(ClosedLoop(Hardware(after)), Concurrency(MOST, start=before), 60)
    assert run.limits[0] == before
    assert all(after < limit <= 1.3 * after + 2 for limit in run.limits[10:])
    assert run.rate(10, 60) >= 0.98 * best_rate(Hardware(after))


@REPORTS
def test_too_little_work_teaches_nothing(reports: bool) -> None:
    loop = ClosedLoop(Hardware(256), work=20)
    run = simulate(loop, Concurrency(MOST), 60, reports=reports)
    assert set(run.limits) == {START}


def busy(limit: int, answers: int = 0) -> Interval:
    return Interval(TICK, limit, limit, answers, work=40.0 * answers, latency=answers)


def test_limit_stays_within_its_bounds() -> None:
    search = Concurrency(50)
    for tick in range(20):
        search.observe(tick, busy(search.limit), EngineLoad(search.limit, 0))
    assert search.limit == 50
    for tick in range(20):
        search.refused(tick)
    assert search.limit == 1
    assert Concurrency(8).limit == 8


def test_refusal_halves_the_limit_and_caps_it_for_a_while() -> None:
    search = Concurrency(MOST, start=100)
    search.refused(0.0)
    assert search.limit == 50
    limits = []
    for tick in range(1, 60):
        search.observe(tick, busy(search.limit, 100), EngineLoad(search.limit, 0))
        limits.append(search.limit)
    assert limits[-1] == max(limits) == 90
    assert limits.index(90) <= 10


@REPORTS
@pytest.mark.parametrize("accepted", [50, 200])
def test_refusals_become_rare(accepted: int, reports: bool) -> None:
    loop, search = ClosedLoop(Hardware(512)), Concurrency(MOST)
    refusals, resumes_at = [], 0
    for tick in range(600):
        loop.limit = search.limit if tick >= resumes_at else 0
        loop.run_until(loop.now + TICK)
        if loop.in_flight > accepted and tick >= resumes_at:
            search.refused(loop.now)
            refusals.append(tick)
            resumes_at = tick + 2
        load = loop.load() if reports else None
        search.observe(loop.now, loop.interval(TICK), load)
    assert sum(tick < 60 for tick in refusals) <= 5
    assert sum(tick >= 60 for tick in refusals) <= 5
    assert search.limit >= accepted // 2


def test_clients_of_one_engine_keep_their_shares() -> None:
    search = Concurrency(MOST, start=128)
    # The engine runs 64 requests, and half of what it has is ours.
    for tick in range(3):
        search.observe(tick, busy(128), EngineLoad(64, 192))
    assert 32 < search.limit <= 40


def test_queue_of_prompts_that_is_shrinking_lowers_nothing() -> None:
    search = Concurrency(MOST, start=256)
    for tick, running in enumerate((60, 120, 180, 240)):
        search.observe(tick, busy(256), EngineLoad(running, 256 - running))
    assert search.limit == 256


def test_restart_searches_from_the_start() -> None:
    search = Concurrency(MOST)
    for tick in range(5):
        search.observe(tick, busy(search.limit), EngineLoad(search.limit, 0))
    search.refused(5.0)
    search.restart()
    assert (search.limit, search.is_settled) == (START, False)
    for tick in range(6, 12):
        search.observe(tick, busy(search.limit), EngineLoad(search.limit, 0))
    assert search.limit == MOST

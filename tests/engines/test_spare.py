"""The spare capacity of an engine beside online traffic, in simulated time."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import pytest

from bench.shared_engine import HARDWARE, SharedEngine, follow, percentile, without_first_tokens
from lowtide.engines.concurrency import TICK
from lowtide.engines.load import EngineLoad, FirstTokens, Interval
from lowtide.engines.spare import SpareConcurrency

if TYPE_CHECKING:
    from bench.shared_engine import Moment

MOST = HARDWARE.max_num_seqs
SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])


def online(_: float) -> float:
    return 10.0


def first_tokens(engine: SharedEngine, since: float = 0.0) -> list[float]:
    return [seconds for at, seconds in engine.first_tokens if at >= since]


def alone(seed: int) -> list[float]:
    engine = SharedEngine(online, seed=seed)
    follow(engine, 0, 300)
    return first_tokens(engine)


def mean_limit(moments: list[Moment], start: int, end: int) -> float:
    return fmean(moment.limit for moment in moments[start:end])


@SEEDS
def test_time_to_first_token_of_online_traffic_stays_near_the_target(seed: int) -> None:
    without = alone(seed)
    engine, fixed = (SharedEngine(online, seed=seed) for _ in range(2))
    moments = follow(engine, SpareConcurrency(MOST, 1.2 * fmean(without)), 300)
    assert percentile(first_tokens(engine), 0.99) <= 1.17 * percentile(without, 0.99)
    follow(fixed, 36, 300)
    assert engine.tokens - moments[99].tokens >= 0.9 * fixed.tokens * 2 / 3


@SEEDS
def test_online_traffic_that_doubles_takes_its_part_and_returns_it(seed: int) -> None:
    def wave(now: float) -> float:
        return 20.0 if 200 <= now < 350 else 10.0

    target = 1.2 * fmean(alone(seed))
    engine = SharedEngine(wave, seed=seed)
    moments = follow(engine, SpareConcurrency(MOST, target), 500)
    before, during, after = (
        mean_limit(moments, *span) for span in [(100, 200), (220, 350), (400, 500)]
    )
    assert during < 0.85 * before < 1.1 * after
    assert fmean(first_tokens(engine, 220)) <= target


@SEEDS
def test_queue_decides_without_times_to_first_token(seed: int) -> None:
    engine, full = (SharedEngine(online, seed=seed) for _ in range(2))
    moments = follow(engine, SpareConcurrency(MOST, 0.02), 300, reports=without_first_tokens)
    waiting = [moment.waiting for moment in moments[150:]]
    assert sum(map(bool, waiting)) <= 0.2 * len(waiting)
    follow(full, MOST, 300)
    assert engine.tokens - moments[149].tokens >= 0.9 * full.tokens / 2


def test_online_traffic_that_fills_the_engine_leaves_one_request() -> None:
    engine = SharedEngine(lambda _: 150.0, seed=1)
    moments = follow(engine, SpareConcurrency(MOST, None), 120)
    assert moments[-1].waiting > 0
    assert {moment.limit for moment in moments[100:]} == {1}


def test_engine_without_a_report_gets_one_request_at_a_time() -> None:
    engine = SharedEngine(online, seed=1)
    moments = follow(engine, SpareConcurrency(MOST, 0.02), 60, reports=lambda _: None)
    assert {moment.limit for moment in moments[1:]} == {1}


def test_too_little_work_does_not_raise_the_limit() -> None:
    spare = SpareConcurrency(MOST, None)
    for tick in range(100):
        spare.observe(tick, Interval(TICK, 3, 3), EngineLoad(3, 0))
    assert spare.limit == 4


def grown(target: float | None, ticks: int = 20) -> SpareConcurrency:
    spare = SpareConcurrency(MOST, target)
    for tick in range(ticks):
        load = EngineLoad(spare.limit, 0, FirstTokens(100.0 * tick, 1.0 * tick))
        spare.observe(tick, busy(spare), load)
    return spare


def busy(spare: SpareConcurrency) -> Interval:
    return Interval(TICK, spare.limit, spare.limit)


def test_limit_grows_by_a_step_and_shrinks_by_a_share() -> None:
    spare = grown(0.02)
    assert (spare.limit, spare.is_settled) == (2 * 20, False)
    # 100 first tokens after 25 ms each.
    spare.observe(20, busy(spare), EngineLoad(40, 0, FirstTokens(2000, 21.5)))
    assert (spare.limit, spare.is_settled) == (32, True)


def test_limit_shrinks_again_only_once_the_requests_of_a_larger_one_have_ended() -> None:
    spare = grown(0.02)
    late = [FirstTokens(1900.0 + 100 * tick, 19.0 + 2.5 * tick) for tick in range(1, 12)]
    in_flight = spare.limit
    for tick in range(6):
        spare.observe(tick, Interval(TICK, 40, in_flight), EngineLoad(40, 0, late[tick]))
    assert spare.limit == 32
    for tick in range(6, 8):
        spare.observe(tick, busy(spare), EngineLoad(32, 0, late[tick]))
    assert spare.limit == 25


def test_refusal_halves_the_limit() -> None:
    spare = grown(None)
    before = spare.limit
    spare.refused(20)
    assert spare.limit == before // 2
    spare.restart()
    assert (spare.limit, spare.is_settled) == (2, False)


def test_counters_that_start_again_lower_nothing() -> None:
    spare = grown(0.02)
    before = spare.limit
    for tick in range(20, 24):
        load = EngineLoad(before, 0, FirstTokens(100.0 * (tick - 20), 1.0 * (tick - 20)))
        spare.observe(tick, busy(spare), load)
    assert spare.limit > before


def test_few_first_tokens_are_judged_after_some_ticks() -> None:
    spare = SpareConcurrency(MOST, 0.02)
    limits = []
    for tick in range(13):
        spare.observe(tick, busy(spare), EngineLoad(2, 0, FirstTokens(2.0 * tick, 0.02 * tick)))
        limits.append(spare.limit)
    assert limits == [2] * 5 + [4] * 5 + [6] * 3

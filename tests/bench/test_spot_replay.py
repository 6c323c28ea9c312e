"""The replay of spot markets: its arithmetic, and deadlines met on every market."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.spot_bounds import Window, all_dedicated, omniscient
from bench.spot_crew import Crew
from bench.spot_replay import greedy, replay
from lowtide.planning.demand import Capacity

if TYPE_CHECKING:
    from collections.abc import Callable

# Two dedicated replicas, each of one request a second, that start in 30 s.
TWO = Capacity(rate=1.0, replicas=2, cold_start=30.0, margin=0.0, tick=60.0)


@pytest.mark.parametrize(
    ("lines", "replicas", "seconds", "remaining", "end"),
    [
        pytest.param(100, 2, 30.0, 40, 30.0, id="all busy"),
        pytest.param(60, 2, 30.0, 0, 30.0, id="just done"),
        pytest.param(61, 2, 31.0, 0, 31.0, id="last request alone"),
        pytest.param(10, 2, 30.0, 0, 5.0, id="done before"),
        pytest.param(1, 3, 30.0, 0, 1.0, id="fewer requests than replicas"),
        pytest.param(5, 0, 30.0, 5, 30.0, id="no replicas"),
    ],
)
def test_crew_runs_requests(
    lines: int, replicas: int, seconds: float, remaining: int, end: float
) -> None:
    crew = Crew(1.0)
    crew.lines = lines
    crew.resize(replicas, 0.0)
    assert crew.run(0.0, seconds) == pytest.approx(end)
    assert (crew.lines, crew.paid) == (remaining, replicas * seconds)


def test_starting_replica_is_paid_but_runs_nothing() -> None:
    crew = Crew(0.5)
    crew.lines = 100
    crew.resize(1, 30.0)
    assert (crew.starts(0.0), crew.in_hand(0.0)) == ([30.0], 0)
    crew.run(0.0, 33.0)
    assert (crew.lines, crew.paid, crew.in_hand(33.0)) == (99, 33.0, 1)
    crew.run(33.0, 34.0)
    assert crew.lines == 98


def test_running_request_is_lost_with_its_replica() -> None:
    crew = Crew(0.1)
    crew.lines = 5
    crew.resize(2, 0.0)
    crew.run(0.0, 9.0)
    crew.resize(1, 0.0)
    crew.run(9.0, 10.0)
    assert crew.lines == 4
    crew.resize(2, 10.0)
    crew.run(10.0, 19.0)
    assert crew.lines == 4
    crew.give_up(1)
    crew.run(19.0, 20.0)
    assert crew.lines == 2


@given(st.integers(1, 5), st.integers(0, 40), st.lists(st.integers(1, 20), max_size=20))
def test_result_does_not_depend_on_time_steps(replicas: int, lines: int, cuts: list[int]) -> None:
    whole, cut = Crew(0.3), Crew(0.3)
    for crew in (whole, cut):
        crew.lines = lines
        crew.resize(replicas, 4.0)
    now = 0.0
    for seconds in cuts:
        cut.run(now, now + seconds)
        now += seconds
    whole.run(0.0, now)
    assert cut.lines == whole.lines
    assert cut.paid == pytest.approx(whole.paid)


def test_batch_runs_on_spot_alone_if_possible() -> None:
    outcome = replay(Window([4] * 10, 60.0, 600.0, 1000), TWO)
    assert outcome.ended == pytest.approx(280.0)
    assert outcome.dedicated == 0.0
    assert outcome.cost(3.0) == outcome.spot == pytest.approx(4 * 280.0)


def test_dedicated_starts_at_last_moment_without_spot() -> None:
    outcome = replay(Window([0] * 10, 60.0, 600.0, 700), TWO, record=True)
    assert outcome.ended is not None
    assert outcome.ended <= 600.0
    first = next(moment.at for moment in outcome.history if moment.dedicated)
    assert first == 180.0
    assert outcome.dedicated == pytest.approx(700 + 2 * 30.0, abs=60.0)


def test_greedy_policy_costs_more() -> None:
    window = Window([0] * 4 + [4] * 6, 60.0, 600.0, 900)
    capacity = replace(TWO, cold_start=0.0)
    assert replay(window, capacity, greedy).cost(3.0) > replay(window, capacity).cost(3.0)


@pytest.mark.parametrize(
    ("market", "lines", "cost"),
    [
        pytest.param([0] * 10, 570, 570 * 3 * 600 / 570, id="no spot"),
        pytest.param([1] * 10, 285, 300.0, id="half of a long session"),
        pytest.param([1, 0] * 5, 150, 5 * 60.0, id="short sessions"),
        pytest.param([1, 2] * 5, 570, 600.0, id="longest session first"),
    ],
)
def test_lower_bound_includes_cold_starts(market: list[int], lines: int, cost: float) -> None:
    assert omniscient(Window(market, 60.0, 600.0, lines), TWO, 3.0) == pytest.approx(cost)


def _noise(rng: random.Random, length: int, maximum: int) -> list[int]:
    return [rng.randint(0, maximum) for _ in range(length)]


def _walk(rng: random.Random, length: int, maximum: int) -> list[int]:
    market, level = [], rng.randint(0, maximum)
    for _ in range(length):
        level = min(maximum, max(0, level + rng.choice((-3, -1, 0, 0, 0, 1, 2))))
        market.append(level)
    return market


def _bursts(rng: random.Random, length: int, maximum: int) -> list[int]:
    market: list[int] = []
    while len(market) < length:
        market += [rng.choice((0, maximum))] * rng.randint(1, 40)
    return market[:length]


def _lost_after_tick(_: random.Random, length: int, maximum: int) -> list[int]:
    return [maximum if point % 5 == 0 else 0 for point in range(length)]


def _lost_for_good(rng: random.Random, length: int, maximum: int) -> list[int]:
    level = rng.randrange(length)
    return [maximum] * level + [0] * (length - level)


_MARKETS = (_noise, _walk, _bursts, _lost_after_tick, _lost_for_good)


@settings(max_examples=150)
@given(
    market=st.sampled_from(_MARKETS),
    seed=st.integers(0, 10**6),
    maximum=st.integers(0, 20),
    replicas=st.sampled_from([1, 2, 3, 4, 16]),
    load=st.one_of(st.floats(0.01, 1.0), st.floats(0.95, 1.0)),
    rate=st.sampled_from([0.004, 0.01, 0.05, 0.3, 1.0]),
    cold_start=st.sampled_from([0.0, 7.0, 180.0, 900.0]),
    tick=st.sampled_from([60.0, 300.0, 433.0, 3600.0]),
    seconds=st.sampled_from([3600.0, 20_000.0, 86_400.0]),
)
@example(_lost_after_tick, 0, 16, 16, 0.97, 0.3, 180.0, 300.0, 86_400.0)
@example(_noise, 0, 0, 2, 1.0, 0.004, 0.0, 60.0, 20_000.0)
@example(_lost_for_good, 1, 16, 4, 0.9979, 0.3, 180.0, 300.0, 86_400.0)
def test_feasible_batch_finishes_in_time(
    market: Callable[[random.Random, int, int], list[int]],
    seed: int,
    maximum: int,
    replicas: int,
    load: float,
    rate: float,
    cold_start: float,
    tick: float,
    seconds: float,
) -> None:
    gap = 60.0
    rng = random.Random(seed)  # noqa: S311
    available = market(rng, int(seconds / gap) + 1, maximum)
    window = Window(available, gap, seconds, max(1, int(load * replicas * seconds * rate)))
    capacity = Capacity(rate, replicas, cold_start, 0.0, tick)
    outcome = replay(window, capacity)
    assert outcome.ended is not None or all_dedicated(window, capacity) > seconds
    if outcome.ended is not None:
        assert outcome.cost(3.0) >= omniscient(window, capacity, 3.0) * (1 - 1e-9)

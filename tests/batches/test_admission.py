"""Admission of a new batch by the feasibility of its deadline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.batches.admission import Admission, admit
from lowtide.planning.demand import Capacity, Demand

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Two replicas, each of one request a second; nothing is lost.
TWO = Capacity(rate=1.0, replicas=2, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)


def _demand_in(seconds: float, lines: int) -> Demand:
    return Demand(NOW + timedelta(seconds=seconds), lines)


def _at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("new", "others", "feasible", "earliest"),
    [
        pytest.param((100, 200), [], True, 100, id="exactly fits"),
        pytest.param((100, 201), [], False, 100.5, id="half a second late"),
        pytest.param((100, 20), [], True, 10, id="feasible sooner"),
        pytest.param((100, 0), [], True, 0, id="nothing to do"),
        pytest.param((-5, 2), [], False, 1, id="deadline passed"),
        pytest.param((100, 100), [(50, 100)], True, 100, id="after an earlier batch"),
        pytest.param((100, 101), [(50, 100)], False, 100.5, id="too many after an earlier batch"),
        pytest.param((50, 50), [(100, 150)], True, 25, id="before a later batch"),
        pytest.param((50, 51), [(100, 150)], False, 100.5, id="would break another deadline"),
        pytest.param((50, 10), [(100, 300)], False, 155, id="not before a batch at risk"),
        pytest.param((60, 20), [(20, 20), (40, 40)], True, 10, id="before two"),
        pytest.param((60, 20), [(20, 40), (40, 40)], True, 50, id="after both"),
    ],
)
def test_admission_finds_earliest_feasible_deadline(
    new: tuple[float, int], others: list[tuple[float, int]], feasible: bool, earliest: float
) -> None:
    verdict = admit(_demand_in(*new), [_demand_in(*other) for other in others], NOW, TWO)
    assert verdict == Admission(feasible, _at(earliest))


def test_cold_start_margin_and_retries_reduce_capacity() -> None:
    slow = Capacity(1.0, 2, cold_start=30.0, margin=15.0, tick=10.0, in_flight=5, attempts=2.0)
    assert admit(_demand_in(150, 100), [], NOW, slow) == Admission(True, _at(150))
    assert admit(_demand_in(149, 100), [], NOW, slow) == Admission(False, _at(150))


def test_nothing_is_feasible_without_dedicated_replicas() -> None:
    none = Capacity(1.0, 0, 0.0, 0.0, 10.0)
    assert admit(_demand_in(100, 1), [], NOW, none) == Admission(False, None)


def test_deadline_beyond_calendar_is_infeasible() -> None:
    slow = Capacity(1e-9, 1, 0.0, 0.0, 10.0, in_flight=0)
    assert admit(_demand_in(100, 10**9), [], NOW, slow) == Admission(False, None)


_demand = st.builds(_demand_in, st.integers(1, 500), st.integers(1, 300))


def _is_feasible(new: Demand, others: list[Demand]) -> bool:
    """Return whether the demand of each deadline from that of `new` on fits."""
    demands = [*others, new]
    return all(
        sum(other.lines for other in demands if other.deadline <= each.deadline)
        <= 2 * (each.deadline - NOW).total_seconds() + 1e-6
        for each in demands
        if each.deadline >= new.deadline
    )


@given(_demand, st.lists(_demand, max_size=6))
def test_admission_equals_brute_force_demand_bound(new: Demand, others: list[Demand]) -> None:
    verdict = admit(new, others, NOW, TWO)
    assert verdict.earliest is not None
    assert verdict.held == _is_feasible(new, others)
    assert _is_feasible(Demand(verdict.earliest, new.lines), others)
    sooner = verdict.earliest - timedelta(seconds=0.4)
    assert not _is_feasible(Demand(sooner, new.lines), others)

"""Whether a new batch's window can be promised."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.batches.admission import Admission, admit
from lowtide.planning.demand import Capacity, Demand

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Two replicas of one line a second; nothing is lost.
TWO = Capacity(rate=1.0, replicas=2, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)


def _due(seconds: float, lines: int) -> Demand:
    return Demand(NOW + timedelta(seconds=seconds), lines)


def _at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("new", "others", "held", "earliest"),
    [
        pytest.param((100, 200), [], True, 100, id="exactly fits"),
        pytest.param((100, 201), [], False, 100.5, id="half a second late"),
        pytest.param((100, 20), [], True, 10, id="could be promised sooner"),
        pytest.param((100, 0), [], True, 0, id="nothing to do"),
        pytest.param((-5, 2), [], False, 1, id="due already"),
        pytest.param((100, 100), [(50, 100)], True, 100, id="behind an earlier one"),
        pytest.param((100, 101), [(50, 100)], False, 100.5, id="too much behind an earlier one"),
        pytest.param((50, 50), [(100, 150)], True, 25, id="ahead of a later one"),
        pytest.param((50, 51), [(100, 150)], False, 100.5, id="it would take another's deadline"),
        pytest.param((50, 10), [(100, 300)], False, 155, id="nothing goes ahead of one at risk"),
        pytest.param((60, 20), [(20, 20), (40, 40)], True, 10, id="ahead of two"),
        pytest.param((60, 20), [(20, 40), (40, 40)], True, 50, id="behind both"),
    ],
)
def test_verdicts(
    new: tuple[float, int], others: list[tuple[float, int]], held: bool, earliest: float
) -> None:
    verdict = admit(_due(*new), [_due(*other) for other in others], NOW, TWO)
    assert verdict == Admission(held, _at(earliest))


def test_a_start_a_margin_and_retries_are_counted() -> None:
    slow = Capacity(1.0, 2, cold_start=30.0, margin=15.0, tick=10.0, in_flight=5, attempts=2.0)
    assert admit(_due(150, 100), [], NOW, slow) == Admission(True, _at(150))
    assert admit(_due(149, 100), [], NOW, slow) == Admission(False, _at(150))


def test_without_dedicated_replicas_nothing_is_promised() -> None:
    none = Capacity(1.0, 0, 0.0, 0.0, 10.0)
    assert admit(_due(100, 1), [], NOW, none) == Admission(False, None)


def test_there_is_no_promise_behind_the_calendars_end() -> None:
    slow = Capacity(1e-9, 1, 0.0, 0.0, 10.0, in_flight=0)
    assert admit(_due(100, 10**9), [], NOW, slow) == Admission(False, None)


_demand = st.builds(_due, st.integers(1, 500), st.integers(1, 300))


def _is_held(new: Demand, others: list[Demand]) -> bool:
    """Return whether everything due from `new` on fits, tried one by one."""
    due = [*others, new]
    return all(
        sum(other.lines for other in due if other.deadline <= each.deadline)
        <= 2 * (each.deadline - NOW).total_seconds() + 1e-6
        for each in due
        if each.deadline >= new.deadline
    )


@given(_demand, st.lists(_demand, max_size=6))
def test_the_verdict_is_the_demand_bound(new: Demand, others: list[Demand]) -> None:
    verdict = admit(new, others, NOW, TWO)
    assert verdict.earliest is not None
    assert verdict.held == _is_held(new, others)
    assert _is_held(Demand(verdict.earliest, new.lines), others)
    sooner = verdict.earliest - timedelta(seconds=0.4)
    assert not _is_held(Demand(sooner, new.lines), others)

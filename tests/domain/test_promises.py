"""A batch whose window cannot be promised."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from lowtide.domain.demand import Capacity, Demand
from lowtide.domain.errors import Conflict
from lowtide.domain.promises import AdmissionPolicy

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Two replicas of one line a second; nothing is lost.
TWO = Capacity(rate=1.0, replicas=2, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)
NONE = Capacity(rate=1.0, replicas=0, cold_start=0.0, margin=0.0, tick=10.0)


def _due(seconds: float, lines: int) -> Demand:
    return Demand(NOW + timedelta(seconds=seconds), lines)


@pytest.mark.parametrize("strict", [False, True], ids=["open", "strict"])
def test_what_can_be_held_is_taken(strict: bool) -> None:
    policy = AdmissionPolicy(TWO, strict=strict)
    assert not policy.is_at_risk(_due(100, 200), [], NOW)
    assert not policy.is_at_risk(_due(100, 100), [_due(50, 100)], NOW)


@pytest.mark.parametrize("capacity", [TWO, NONE], ids=["too little", "none"])
def test_what_cannot_be_held_is_at_risk(capacity: Capacity) -> None:
    assert AdmissionPolicy(capacity).is_at_risk(_due(100, 201), [], NOW)


@pytest.mark.parametrize(
    ("new", "others", "window"),
    [
        pytest.param((100, 201), [], 2, id="alone"),
        pytest.param((60, 20), [(20, 40), (40, 80)], 2, id="behind two"),
        pytest.param((60, 7200), [], 60, id="an hour's work"),
    ],
)
def test_strict_names_the_window_that_would_do(
    new: tuple[float, int], others: list[tuple[float, int]], window: int
) -> None:
    policy = AdmissionPolicy(TWO, strict=True)
    rest = [_due(*other) for other in others]
    with pytest.raises(Conflict, match=rf"UTC, a window of {window}m\.$") as refused:
        policy.is_at_risk(_due(*new), rest, NOW)
    assert (refused.value.param, refused.value.code) == (
        "completion_window",
        "deadline_not_feasible",
    )
    named = re.search(r"a window of (\d+)m", refused.value.message)
    assert named is not None
    assert not policy.is_at_risk(_due(60 * int(named[1]), new[1]), rest, NOW)


def test_strict_without_dedicated_capacity_says_so() -> None:
    with pytest.raises(Conflict, match="no dedicated capacity"):
        AdmissionPolicy(NONE, strict=True).is_at_risk(_due(100, 1), [], NOW)

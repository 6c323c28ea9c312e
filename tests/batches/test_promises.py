"""A batch whose window cannot be promised."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lowtide.batches.admission import AdmissionPolicy
from lowtide.batches.forecast import OpenWork, Outlook
from lowtide.core.errors import Conflict
from lowtide.core.pools import Pool
from lowtide.planning.demand import Capacity, Demand, Rate, RateSample

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Two replicas of one line a second; nothing is lost.
TWO = Capacity(rate=1.0, replicas=2, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)
NONE = Capacity(rate=1.0, replicas=0, cold_start=0.0, margin=0.0, tick=10.0)


def _due(seconds: float, lines: int) -> Demand:
    return Demand(NOW + timedelta(seconds=seconds), lines)


def _beside(*others: tuple[float, int]) -> Outlook:
    return Outlook(NOW, tuple(OpenWork(_due(*other).deadline, "m", other[1]) for other in others))


@pytest.mark.parametrize("strict", [False, True], ids=["open", "strict"])
def test_what_can_be_held_is_taken(strict: bool) -> None:
    policy = AdmissionPolicy(TWO, strict=strict)
    assert not policy.is_at_risk(_due(100, 200), _beside())
    assert not policy.is_at_risk(_due(100, 100), _beside((50, 100)))


@pytest.mark.parametrize("capacity", [TWO, NONE], ids=["too little", "none"])
def test_what_cannot_be_held_is_at_risk(capacity: Capacity) -> None:
    assert AdmissionPolicy(capacity).is_at_risk(_due(100, 201), _beside())


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
    rest = _beside(*others)
    with pytest.raises(Conflict, match=rf"UTC, a completion window of {window}m\.$") as refused:
        policy.is_at_risk(_due(*new), rest)
    assert (refused.value.param, refused.value.code) == (
        "completion_window",
        "deadline_not_feasible",
    )
    named = re.search(r"a completion window of (\d+)m", refused.value.message)
    assert named is not None
    assert not policy.is_at_risk(_due(60 * int(named[1]), new[1]), rest)


def test_strict_without_dedicated_capacity_says_so() -> None:
    with pytest.raises(Conflict, match="no dedicated capacity"):
        AdmissionPolicy(NONE, strict=True).is_at_risk(_due(100, 1), _beside())


def test_a_paused_dedicated_pool_promises_nothing() -> None:
    idle = replace(_beside(), paused=frozenset({Pool.DEDICATED}))
    assert AdmissionPolicy(TWO).is_at_risk(_due(100, 1), idle)
    with pytest.raises(Conflict, match="dedicated pool is paused"):
        AdmissionPolicy(TWO, strict=True).is_at_risk(_due(100, 1), idle)
    on_spot = replace(idle, paused=frozenset({Pool.SPOT}))
    assert not AdmissionPolicy(TWO, strict=True).is_at_risk(_due(100, 200), on_spot)


def test_what_was_measured_is_counted_on() -> None:
    policy = AdmissionPolicy(TWO)
    slow = {(Pool.DEDICATED, "m"): Rate().fold([RateSample(5000, 10_000.0)] * 10)}
    fast_spot = {(Pool.SPOT, "m"): Rate().fold([RateSample(50_000, 10_000.0)] * 10)}
    beside = _beside((1000, 1))
    new = _due(100, 150)
    assert not policy.is_at_risk(new, beside)
    assert policy.is_at_risk(new, replace(beside, rates=slow))
    assert not policy.is_at_risk(new, replace(beside, rates=fast_spot))


def test_retries_take_their_time() -> None:
    policy = AdmissionPolicy(TWO)
    retried = Outlook(NOW, (OpenWork(_due(1000, 1).deadline, "m", 1, ended=9800, retried=10_000),))
    assert not policy.is_at_risk(_due(100, 150), _beside((1000, 1)))
    assert policy.is_at_risk(_due(100, 150), retried)

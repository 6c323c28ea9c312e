"""Admission policies for infeasible deadlines."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from lowtide.batches.admission import AdmissionPolicy
from lowtide.batches.workload import OpenWork, Workload, Workloads
from lowtide.core.errors import Conflict
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.planning.demand import Capacity, Demand, Rate, RateSample

if TYPE_CHECKING:
    from lowtide.planning.reasons import Reason

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Two replicas, each of one request a second; nothing is lost.
TWO = Capacity(rate=1.0, replicas=2, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)
NONE = Capacity(rate=1.0, replicas=0, cold_start=0.0, margin=0.0, tick=10.0)


def _demand(seconds: float, lines: int) -> Demand:
    return Demand(NOW + timedelta(seconds=seconds), lines)


def _risk(policy: AdmissionPolicy, new: Demand, workload: Workload) -> Reason | None:
    workloads = Workloads(workload.at, {DEFAULT_FLEET: workload})
    return policy.risk(new.deadline, {DEFAULT_FLEET: new.lines}, workloads)


def _workload(*others: tuple[float, int]) -> Workload:
    return Workload(
        NOW, tuple(OpenWork(_demand(*other).deadline, "m", other[1]) for other in others)
    )


@pytest.mark.parametrize("strict", [False, True], ids=["open", "strict"])
def test_feasible_deadline_is_not_at_risk(strict: bool) -> None:
    policy = AdmissionPolicy({DEFAULT_FLEET: TWO}, strict=strict)
    assert not _risk(policy, _demand(100, 200), _workload())
    assert not _risk(policy, _demand(100, 100), _workload((50, 100)))


@pytest.mark.parametrize("capacity", [TWO, NONE], ids=["too little", "none"])
def test_infeasible_deadline_is_at_risk(capacity: Capacity) -> None:
    assert _risk(AdmissionPolicy({DEFAULT_FLEET: capacity}), _demand(100, 201), _workload())


@pytest.mark.parametrize(
    ("new", "others", "window"),
    [
        pytest.param((100, 201), [], 2, id="alone"),
        pytest.param((60, 20), [(20, 40), (40, 80)], 2, id="after two"),
        pytest.param((60, 7200), [], 60, id="an hour's work"),
    ],
)
def test_strict_names_shortest_feasible_window(
    new: tuple[float, int], others: list[tuple[float, int]], window: int
) -> None:
    policy = AdmissionPolicy({DEFAULT_FLEET: TWO}, strict=True)
    workload = _workload(*others)
    with pytest.raises(Conflict, match=rf"UTC, a completion window of {window}m\.$") as raised:
        _risk(policy, _demand(*new), workload)
    assert (raised.value.param, raised.value.code) == (
        "completion_window",
        "deadline_not_feasible",
    )
    match = re.search(r"a completion window of (\d+)m", raised.value.message)
    assert match is not None
    assert not _risk(policy, _demand(60 * int(match[1]), new[1]), workload)


def test_strict_reports_missing_dedicated_capacity() -> None:
    with pytest.raises(Conflict, match="no dedicated capacity"):
        _risk(AdmissionPolicy({DEFAULT_FLEET: NONE}, strict=True), _demand(100, 1), _workload())


def test_paused_dedicated_pool_makes_deadlines_infeasible() -> None:
    dedicated_paused = replace(_workload(), paused=frozenset({Pool.DEDICATED}))
    assert _risk(AdmissionPolicy({DEFAULT_FLEET: TWO}), _demand(100, 1), dedicated_paused)
    with pytest.raises(Conflict, match="dedicated pool is paused"):
        _risk(AdmissionPolicy({DEFAULT_FLEET: TWO}, strict=True), _demand(100, 1), dedicated_paused)
    spot_paused = replace(dedicated_paused, paused=frozenset({Pool.SPOT}))
    assert not _risk(
        AdmissionPolicy({DEFAULT_FLEET: TWO}, strict=True), _demand(100, 200), spot_paused
    )


def test_measured_dedicated_rate_replaces_configured_one() -> None:
    policy = AdmissionPolicy({DEFAULT_FLEET: TWO})
    slow = {(Pool.DEDICATED, "m"): Rate().fold([RateSample(5000, 10_000.0)] * 10)}
    fast_spot = {(Pool.SPOT, "m"): Rate().fold([RateSample(50_000, 10_000.0)] * 10)}
    beside = _workload((1000, 1))
    new = _demand(100, 150)
    assert not _risk(policy, new, beside)
    assert _risk(policy, new, replace(beside, rates=slow))
    assert not _risk(policy, new, replace(beside, rates=fast_spot))


def test_time_of_a_request_follows_what_a_search_found() -> None:
    policy = AdmissionPolicy({DEFAULT_FLEET: replace(TWO, searches=True)})
    steady = {(Pool.DEDICATED, "m"): Rate().fold([RateSample(1000, 1000.0)] * 10)}
    beside = replace(_workload((1000, 1)), rates=steady)
    new = _demand(100, 150)
    assert not _risk(policy, new, replace(beside, concurrency={Pool.SPOT: 400}))
    # The last 50 of 100 s are kept free.
    assert _risk(policy, new, replace(beside, concurrency={Pool.DEDICATED: 50}))


def test_retries_reduce_capacity() -> None:
    policy = AdmissionPolicy({DEFAULT_FLEET: TWO})
    retried = Workload(
        NOW, (OpenWork(_demand(1000, 1).deadline, "m", 1, ended=9800, retried=10_000),)
    )
    assert not _risk(policy, _demand(100, 150), _workload((1000, 1)))
    assert _risk(policy, _demand(100, 150), retried)

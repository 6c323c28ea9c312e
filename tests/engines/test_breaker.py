"""The engine breaker's transitions, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowtide.engines.attribution import Fault
from lowtide.engines.breaker import (
    BARREN,
    FIRST_PROBE,
    LAST_PROBE,
    STREAK,
    Breaker,
    BreakerState,
    Probed,
)

CLOSED = Breaker(BreakerState.CLOSED, 0.0, "")
STARTING = Breaker(patience=180.0)
WELL, ILL = Probed(well=True), Probed(well=False, reason="refused")
ANSWERS = Probed(well=True, answers=True)


def _fail(breaker: Breaker, fault: Fault, times: int = 1, *, ambiguous: bool = False) -> Breaker:
    for _ in range(times):
        breaker = breaker.failed(fault, "HTTP 500", 10.0, ambiguous=ambiguous)
    return breaker


OPEN = _fail(CLOSED, Fault.ENGINE, STREAK)
PROBING = OPEN.probed(WELL, 11.0)


def test_it_opens_after_a_streak_of_engine_faults() -> None:
    assert _fail(CLOSED, Fault.ENGINE, STREAK - 1).state is BreakerState.CLOSED
    assert (OPEN.state, OPEN.since, OPEN.reason) == (BreakerState.OPEN, 10.0, "HTTP 500")
    assert OPEN.is_shut_off
    assert OPEN.probe_at == 10.0 + FIRST_PROBE


def test_a_success_between_ends_the_streak() -> None:
    twice = _fail(CLOSED, Fault.ENGINE, STREAK - 1)
    assert _fail(twice.succeeded(10.0), Fault.ENGINE, STREAK - 1).state is BreakerState.CLOSED


def test_a_requests_fault_between_does_not() -> None:
    twice = _fail(CLOSED, Fault.ENGINE, STREAK - 1)
    assert _fail(_fail(twice, Fault.REQUEST, ambiguous=True), Fault.ENGINE).is_shut_off


def test_it_opens_when_nothing_succeeds_any_more() -> None:
    almost = _fail(CLOSED, Fault.REQUEST, BARREN - 1, ambiguous=True)
    assert (almost.state, almost.is_suspicious) == (BreakerState.CLOSED, True)
    assert _fail(almost, Fault.REQUEST, ambiguous=True).state is BreakerState.OPEN
    assert not almost.probed(ANSWERS, 10.0).is_suspicious


@pytest.mark.parametrize("fault", [Fault.REQUEST, Fault.BACK_PRESSURE, Fault.CAPACITY, Fault.INPUT])
def test_other_faults_never_open_it(fault: Fault) -> None:
    assert _fail(CLOSED, fault, 10 * BARREN) == CLOSED


@pytest.mark.parametrize(
    ("before", "probe", "after"),
    [
        pytest.param(STARTING, WELL, BreakerState.CLOSED, id="a start finds its engine"),
        pytest.param(STARTING, ANSWERS, BreakerState.CLOSED, id="a start finds it answering"),
        pytest.param(STARTING, ILL, BreakerState.STARTING, id="a start waits"),
        pytest.param(OPEN, WELL, BreakerState.PROBING, id="health is well: the canary is next"),
        pytest.param(OPEN, ANSWERS, BreakerState.CLOSED, id="a minimal request was the canary"),
        pytest.param(OPEN, ILL, BreakerState.OPEN, id="still ill"),
        pytest.param(CLOSED, ILL, BreakerState.CLOSED, id="only outcomes open it"),
        pytest.param(PROBING, ILL, BreakerState.PROBING, id="the canary decides"),
    ],
)
def test_a_probe(before: Breaker, probe: Probed, after: BreakerState) -> None:
    assert before.probed(probe, 12.0).state is after


def test_a_start_does_not_wait_for_ever() -> None:
    assert STARTING.probed(ILL, 179.0).state is BreakerState.STARTING
    late = STARTING.probed(ILL, 180.0)
    assert (late.state, late.reason, late.since) == (BreakerState.OPEN, "refused", 0.0)


def test_the_canary() -> None:
    assert PROBING.state is BreakerState.PROBING
    assert not PROBING.is_shut_off
    assert PROBING.succeeded(12.0).state is BreakerState.CLOSED
    assert _fail(PROBING, Fault.REQUEST).state is BreakerState.CLOSED
    assert _fail(PROBING, Fault.BACK_PRESSURE).state is BreakerState.CLOSED
    assert PROBING.found_nothing(12.0).state is BreakerState.CLOSED
    for fault in (Fault.ENGINE, Fault.REQUEST):
        again = _fail(PROBING, fault, ambiguous=True)
        assert (again.state, again.since) == (BreakerState.OPEN, 10.0)


def test_probes_are_less_and_less_often_until_a_request_succeeds() -> None:
    delays, breaker, now = [], OPEN, OPEN.probe_at
    for _ in range(8):
        breaker = breaker.probed(ILL, now)
        delays.append(breaker.probe_at - now)
        now = breaker.probe_at
    assert delays == [1.0, 2.0, 4.0, 8.0, LAST_PROBE, LAST_PROBE, LAST_PROBE, LAST_PROBE]
    # The engine answers its probes and fails every request: that must not become a hot loop.
    reopened = _fail(breaker.probed(ANSWERS, now), Fault.ENGINE, STREAK)
    assert reopened.probe_at == 10.0 + LAST_PROBE
    well = replace(breaker, state=BreakerState.PROBING).succeeded(now)
    assert _fail(well, Fault.ENGINE, STREAK).probe_at == 10.0 + FIRST_PROBE


def test_outcomes_that_come_while_it_is_open_change_nothing() -> None:
    assert _fail(OPEN, Fault.ENGINE, 10) == OPEN
    assert OPEN.succeeded(11.0).state is BreakerState.OPEN

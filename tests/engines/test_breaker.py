"""Transitions of the engine breaker."""

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
HEALTHY, UNHEALTHY = Probed(well=True), Probed(well=False, reason="refused")
ANSWERS = Probed(well=True, answers=True)


def _fail(breaker: Breaker, fault: Fault, times: int = 1, *, ambiguous: bool = False) -> Breaker:
    for _ in range(times):
        breaker = breaker.failed(fault, "HTTP 500", 10.0, ambiguous=ambiguous)
    return breaker


OPEN = _fail(CLOSED, Fault.ENGINE, STREAK)
PROBING = OPEN.probed(HEALTHY, 11.0)


def test_breaker_opens_after_streak_of_engine_faults() -> None:
    assert _fail(CLOSED, Fault.ENGINE, STREAK - 1).state is BreakerState.CLOSED
    assert (OPEN.state, OPEN.since, OPEN.reason) == (BreakerState.OPEN, 10.0, "HTTP 500")
    assert OPEN.is_shut_off
    assert OPEN.probe_at == 10.0 + FIRST_PROBE


def test_success_resets_streak() -> None:
    almost_open = _fail(CLOSED, Fault.ENGINE, STREAK - 1)
    assert _fail(almost_open.succeeded(10.0), Fault.ENGINE, STREAK - 1).state is BreakerState.CLOSED


def test_request_fault_does_not_reset_streak() -> None:
    almost_open = _fail(CLOSED, Fault.ENGINE, STREAK - 1)
    assert _fail(_fail(almost_open, Fault.REQUEST, ambiguous=True), Fault.ENGINE).is_shut_off


def test_breaker_opens_after_many_failures_without_success() -> None:
    almost_open = _fail(CLOSED, Fault.REQUEST, BARREN - 1, ambiguous=True)
    assert (almost_open.state, almost_open.is_suspicious) == (BreakerState.CLOSED, True)
    assert _fail(almost_open, Fault.REQUEST, ambiguous=True).state is BreakerState.OPEN
    assert not almost_open.probed(ANSWERS, 10.0).is_suspicious


@pytest.mark.parametrize("fault", [Fault.REQUEST, Fault.BACK_PRESSURE, Fault.CAPACITY, Fault.INPUT])
def test_unambiguous_other_faults_never_open_breaker(fault: Fault) -> None:
    assert _fail(CLOSED, fault, 10 * BARREN) == CLOSED


@pytest.mark.parametrize(
    ("before", "probe", "after"),
    [
        pytest.param(STARTING, HEALTHY, BreakerState.CLOSED, id="starting, healthy"),
        pytest.param(STARTING, ANSWERS, BreakerState.CLOSED, id="starting, answers"),
        pytest.param(STARTING, UNHEALTHY, BreakerState.STARTING, id="starting, unhealthy"),
        pytest.param(OPEN, HEALTHY, BreakerState.PROBING, id="open, healthy: the canary is next"),
        pytest.param(
            OPEN, ANSWERS, BreakerState.CLOSED, id="open, answers: the probe was the canary"
        ),
        pytest.param(OPEN, UNHEALTHY, BreakerState.OPEN, id="open, unhealthy"),
        pytest.param(CLOSED, UNHEALTHY, BreakerState.CLOSED, id="closed: only outcomes open it"),
        pytest.param(PROBING, UNHEALTHY, BreakerState.PROBING, id="probing: the canary decides"),
    ],
)
def test_probe_changes_state(before: Breaker, probe: Probed, after: BreakerState) -> None:
    assert before.probed(probe, 12.0).state is after


def test_start_times_out() -> None:
    assert STARTING.probed(UNHEALTHY, 179.0).state is BreakerState.STARTING
    late = STARTING.probed(UNHEALTHY, 180.0)
    assert (late.state, late.reason, late.since) == (BreakerState.OPEN, "refused", 0.0)


def test_canary_decides_while_probing() -> None:
    assert PROBING.state is BreakerState.PROBING
    assert not PROBING.is_shut_off
    assert PROBING.succeeded(12.0).state is BreakerState.CLOSED
    assert _fail(PROBING, Fault.REQUEST).state is BreakerState.CLOSED
    assert _fail(PROBING, Fault.BACK_PRESSURE).state is BreakerState.CLOSED
    assert PROBING.found_nothing(12.0).state is BreakerState.CLOSED
    for fault in (Fault.ENGINE, Fault.REQUEST):
        reopened = _fail(PROBING, fault, ambiguous=True)
        assert (reopened.state, reopened.since) == (BreakerState.OPEN, 10.0)


def test_probe_delay_doubles_until_request_succeeds() -> None:
    delays, breaker, now = [], OPEN, OPEN.probe_at
    for _ in range(8):
        breaker = breaker.probed(UNHEALTHY, now)
        delays.append(breaker.probe_at - now)
        now = breaker.probe_at
    assert delays == [1.0, 2.0, 4.0, 8.0, LAST_PROBE, LAST_PROBE, LAST_PROBE, LAST_PROBE]
    # An engine that answers probes and fails every request must not cause a hot loop.
    reopened = _fail(breaker.probed(ANSWERS, now), Fault.ENGINE, STREAK)
    assert reopened.probe_at == 10.0 + LAST_PROBE
    recovered = replace(breaker, state=BreakerState.PROBING).succeeded(now)
    assert _fail(recovered, Fault.ENGINE, STREAK).probe_at == 10.0 + FIRST_PROBE


def test_late_outcomes_do_not_change_open_breaker() -> None:
    assert _fail(OPEN, Fault.ENGINE, 10) == OPEN
    assert OPEN.succeeded(11.0).state is BreakerState.OPEN

"""Throttle: fewer requests in flight for a busy engine, and recovery."""

from __future__ import annotations

from random import Random

import pytest

from lowtide.worker.engine_state import Throttle

RNG = Random(1)  # noqa: S311


def _pressed(throttle: Throttle, now: float, wait: float | None = None) -> Throttle:
    return throttle.pressed(now, RNG, cap=120.0, wait=wait)


def test_back_pressure_halves_limit_once_per_round() -> None:
    throttle = Throttle.of(32)
    for now, limit in ((0.0, 16), (200.0, 8), (400.0, 4), (600.0, 2), (800.0, 1), (1000.0, 1)):
        throttle = _pressed(_pressed(throttle, now), now)
        assert throttle.in_flight(now) == 0
        assert throttle.in_flight(now + 120.0) == limit


def test_round_of_successes_raises_limit_by_one() -> None:
    throttle = _pressed(Throttle.of(32), 0.0)
    throttle = throttle.succeeded(8).succeeded(8)
    assert throttle.in_flight(300.0) == 16
    assert throttle.succeeded(1).in_flight(300.0) == 17
    for _ in range(200):
        throttle = throttle.succeeded(10)
    assert throttle.in_flight(300.0) == 32
    assert throttle.succeeded(10) is throttle


@pytest.mark.parametrize(("wait", "pause"), [(7.0, 7.0), (0.0, 0.0), (1e12, 120.0), (120.0, 120.0)])
def test_retry_after_is_honored_up_to_cap(wait: float, pause: float) -> None:
    throttle = _pressed(Throttle.of(8), 100.0, wait)
    assert throttle.paused_until == 100.0 + pause


def test_longer_retry_after_extends_pause() -> None:
    throttle = _pressed(_pressed(Throttle.of(8), 100.0, 5.0), 101.0, 50.0)
    assert throttle.paused_until == 151.0
    assert _pressed(throttle, 102.0, 1.0).paused_until == 151.0


def test_pauses_double_without_retry_after() -> None:
    throttle, pauses, now = Throttle.of(8), [], 0.0
    for _ in range(10):
        throttle = _pressed(throttle, now)
        pauses.append(throttle.paused_until - now)
        now = throttle.paused_until
    assert all(2.0**n / 2 <= pause <= 2.0**n for n, pause in enumerate(pauses[:7]))
    assert max(pauses) <= 120.0


def test_another_max_applies_at_once_unless_back_pressure_lowered_the_limit() -> None:
    throttle = Throttle.of(32)
    assert throttle.allowing(64).in_flight(0.0) == 64
    assert throttle.allowing(8).in_flight(0.0) == 8
    pressed = _pressed(throttle, 0.0)
    assert pressed.allowing(64).in_flight(300.0) == 16
    assert pressed.allowing(10).in_flight(300.0) == 10

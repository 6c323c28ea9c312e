"""Completion times of a fluid model of claims."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lowtide.planning.completion import Contender, Replicas, seconds_to_run, turn_of

ONE = [Replicas(1, 1.0)]


@pytest.mark.parametrize(
    ("lines", "replicas", "seconds"),
    [
        pytest.param(30, ONE, 30, id="one"),
        pytest.param(30, [Replicas(2, 1.5)], 10, id="several"),
        pytest.param(30, [Replicas(1, 1.0, start=10)], 40, id="after a cold start"),
        pytest.param(30, [*ONE, Replicas(1, 1.0, start=10)], 20, id="one more later"),
        pytest.param(5, [*ONE, Replicas(1, 1.0, start=10)], 5, id="before the second starts"),
        pytest.param(0, [], 0, id="nothing to run"),
        pytest.param(1, [], math.inf, id="no replica"),
        pytest.param(1, [Replicas(3, 0.0)], math.inf, id="no rate"),
    ],
)
def test_seconds_to_run(lines: float, replicas: list[Replicas], seconds: float) -> None:
    assert seconds_to_run(lines, replicas) == pytest.approx(seconds)


def test_requests_of_tenant_and_of_others_are_counted_apart() -> None:
    batch = Contender(5000, 100, sharer=1)
    turn = turn_of(
        batch, [Contender(4000, 20, sharer=1), Contender(4000, 30, 2), Contender(500, 7, 3)], ONE
    )
    assert (turn.own, turn.others, turn.seconds) == (20, 37, 157)


def test_priorities_order_the_own_batches() -> None:
    batch = Contender(5000, 100, sharer=1, priority=1)
    earlier, later = Contender(4000, 20, sharer=1), Contender(80_000, 30, sharer=1, priority=2)
    assert turn_of(batch, [earlier, later], ONE).own == 30
    tight = replace(earlier, barrier=4000)
    assert turn_of(batch, [tight, later], ONE).own == 50
    assert turn_of(earlier, [batch, later], ONE).own == 130


def test_batch_that_waits_for_a_later_one_is_no_more_urgent_to_others() -> None:
    waiting, urgent = Contender(2000, 20, sharer=1), Contender(80_000, 30, sharer=1, priority=2)
    other = Contender(5000, 100, sharer=2)
    alone, both = turn_of(other, [waiting], ONE), turn_of(other, [waiting, urgent], ONE)
    assert (alone.others, both.others) == (20, 0)
    turn = turn_of(waiting, [urgent, other], ONE)
    assert (turn.own, turn.others) == (30, 100)


def test_limited_tenant_takes_no_more_than_its_limit() -> None:
    batch = Contender(5000, 100, sharer=1)
    turn = turn_of(batch, [Contender(500, 1000, 2, max_rate=0.5)], ONE)
    assert turn.seconds == pytest.approx(200, rel=1e-3)
    assert turn.others == pytest.approx(100, rel=1e-3)


def test_own_limit_sets_a_bound() -> None:
    assert turn_of(Contender(5000, 100, 1, max_rate=0.5), [], ONE).limited == 200

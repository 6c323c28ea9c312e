"""Reasons of moves and marks: the ones that the plan gives, and their words."""

from __future__ import annotations

import doctest
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lowtide.core.ids import BatchId
from lowtide.core.pools import Pool
from lowtide.planning import reasons
from lowtide.planning.demand import Capacity
from lowtide.planning.escalation import OpenBatch, Plan, plan_tick
from lowtide.planning.reasons import Bound, Reason, describe
from lowtide.planning.state import SchedulerState, decide

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Two replicas at one request a second each, without start-up time or margins.
TWO = Capacity(rate=1.0, replicas=2, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)


def _batch(
    number: int, seconds: float, *, spot: int = 0, running_spot: int = 0, dedicated: int = 0
) -> OpenBatch:
    deadline = NOW + timedelta(seconds=seconds)
    return OpenBatch(BatchId(uuid.UUID(int=number)), deadline, spot, running_spot, dedicated)


def test_move_names_the_deadline_that_needs_it() -> None:
    sooner, later = _batch(1, 50, spot=50), _batch(2, 60, spot=60)
    (move,) = plan_tick([later, sooner], NOW, TWO).escalations
    assert (move.batch, move.reason) == (sooner.id, Reason.DEADLINE_BOUND)
    assert move.bound == Bound(open=110, seconds=60.0, replicas=1, rate=1.0, capacity=110)


def test_move_that_no_deadline_needs_keeps_dedicated_busy() -> None:
    needed, filler = _batch(1, 60, spot=5, running_spot=96), _batch(2, 900, spot=50)
    moves = plan_tick([needed, filler], NOW, TWO).escalations
    assert [(move.batch, move.reason, move.bound is None) for move in moves] == [
        (needed.id, Reason.DEADLINE_BOUND, False),
        (filler.id, Reason.DEDICATED_IDLE, True),
    ]


def test_revocation_has_the_numbers_of_its_deadline() -> None:
    (move,) = plan_tick([_batch(1, 60, running_spot=101)], NOW, TWO).revocations
    assert (move.reason, move.bound) == (Reason.DEADLINE_BOUND, Bound(101, 60.0, 1, 1.0, 110))


def test_batch_at_risk_has_the_numbers_of_its_bound() -> None:
    plan = plan_tick([_batch(1, 60, spot=121)], NOW, TWO)
    assert plan.bounds == {BatchId(uuid.UUID(int=1)): Bound(121, 60.0, 2, 1.0, 120)}
    assert set(plan.bounds) == plan.at_risk


WAITING = SchedulerState(NOW, (_batch(1, 1000, spot=10, dedicated=30),))


@pytest.mark.parametrize(
    ("state", "capacity", "reason"),
    [
        pytest.param(
            replace(WAITING, paused=frozenset({Pool.DEDICATED})),
            TWO,
            Reason.POOL_PAUSED,
            id="paused",
        ),
        pytest.param(
            replace(WAITING, stranded={Pool.DEDICATED: 2}), TWO, Reason.ENGINE_AWAY, id="no engine"
        ),
        pytest.param(WAITING, replace(TWO, replicas=0), Reason.NO_DEDICATED, id="no replicas"),
    ],
)
def test_without_dedicated_one_reason_moves_and_marks(
    state: SchedulerState, capacity: Capacity, reason: Reason
) -> None:
    plan = decide(state, capacity)
    assert {move.reason for move in plan.returns} == {reason}
    assert (plan.risk, set(plan.at_risk)) == (reason, {BatchId(uuid.UUID(int=1))})


def test_unneeded_requests_return_because_spot_has_caught_up() -> None:
    plan = decide(WAITING, TWO)
    assert isinstance(plan, Plan)
    assert {move.reason for move in plan.returns} == {Reason.SPOT_CAUGHT_UP}
    assert (plan.risk, plan.at_risk) == (Reason.DEADLINE_BOUND, frozenset())


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (
            Bound(1, 59.0, 1, 0.25, 2),
            "1 request is due in 59 s: that needs 1 dedicated worker at 0.25 requests/s",
        ),
        (
            Bound(12_000, 7300.0, 3, 1.0, 0),
            "12,000 requests are due in 2 h 1 min: 3 dedicated workers at 1 requests/s each can finish 0",
        ),
        (Bound(7, -1.0, 3, 1.0, 0), "7 requests are past the deadline"),
        (None, "Too much work is due by the deadline"),
    ],
)
def test_bound_is_described_with_its_numbers(bound: Bound | None, words: str) -> None:
    assert describe(Reason.DEADLINE_BOUND, bound) == words


def test_every_reason_has_words() -> None:
    assert all(describe(reason) for reason in Reason)
    assert doctest.testmod(reasons).failed == 0

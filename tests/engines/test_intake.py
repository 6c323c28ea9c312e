"""Concurrent answers within a byte budget: the oldest never waits for another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from lowtide.engines.flow import ByteBudget
from lowtide.engines.receiving import Intake

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.engines.receiving import Receiver


@dataclass(eq=False)
class FakeReceiver:
    """A receiver that records if it is paused."""

    is_paused: bool = False

    def hold(self) -> None:
        self.is_paused = True

    def go_on(self) -> None:
        self.is_paused = False


@pytest.fixture
def budget() -> ByteBudget:
    return ByteBudget(100)


def test_answers_that_fit_are_never_paused(budget: ByteBudget) -> None:
    intake = Intake(budget, soon=lambda call: call())
    receivers = [FakeReceiver() for _ in range(3)]
    for receiver in receivers:
        intake.received(receiver, 10, 30)
    assert budget.used == 90
    for receiver in receivers:
        intake.received(receiver, 30, 30)
        assert not receiver.is_paused
    assert budget.used == 90
    for receiver in receivers:
        intake.ended(receiver)
    assert budget.used == 0


def test_answer_that_does_not_fit_waits_for_room(budget: ByteBudget) -> None:
    intake = Intake(budget, soon=lambda call: call())
    first, second, third = FakeReceiver(), FakeReceiver(), FakeReceiver()
    intake.received(first, 10, 60)
    intake.received(second, 10, 60)
    intake.received(third, 5, 20)
    assert (first.is_paused, second.is_paused, third.is_paused) == (False, True, False)
    assert budget.used == 60 + 10 + 20
    intake.ended(third)
    assert (first.is_paused, second.is_paused) == (False, True)
    intake.ended(first)
    assert (first.is_paused, second.is_paused) == (False, False)
    intake.ended(second)
    assert budget.used == 0


@pytest.mark.parametrize("expected", [0, 150])
def test_oldest_answer_may_exceed_budget(budget: ByteBudget, expected: int) -> None:
    intake = Intake(budget, soon=lambda call: call())
    first, second = FakeReceiver(), FakeReceiver()
    for size in range(10, 160, 10):
        intake.received(first, size, expected)
        intake.received(second, min(size, 20), expected)
    assert (first.is_paused, second.is_paused) == (False, True)
    intake.ended(first)
    assert not second.is_paused


def test_answer_of_unknown_length_pauses_while_budget_is_spent(budget: ByteBudget) -> None:
    intake = Intake(budget, soon=lambda call: call())
    first, second = FakeReceiver(), FakeReceiver()
    intake.received(first, 10)
    intake.received(second, 10)
    budget.take(80)
    intake.received(second, 20)
    assert (first.is_paused, second.is_paused) == (False, True)
    budget.give(80)
    assert not second.is_paused


def test_oldest_answer_waits_for_results_to_be_written(budget: ByteBudget) -> None:
    intake = Intake(budget, soon=lambda call: call())
    first, second = FakeReceiver(), FakeReceiver()
    budget.take_result(60)
    intake.received(first, 50)
    intake.received(second, 10)
    assert (first.is_paused, second.is_paused) == (True, True)
    budget.give_result(50)
    assert (first.is_paused, second.is_paused) == (False, False)
    intake.received(first, 150)
    assert not first.is_paused


def test_ended_answer_frees_room_after_its_result_is_counted(budget: ByteBudget) -> None:
    callbacks: list[Callable[[], None]] = []
    intake = Intake(budget, soon=callbacks.append)
    first, second = FakeReceiver(), FakeReceiver()
    intake.received(first, 60, 60)
    intake.received(second, 10, 60)
    intake.ended(first)
    budget.take_result(60)
    callbacks.pop()()
    assert (first.is_paused, second.is_paused) == (False, True)
    budget.give_result(60)
    callbacks.pop()()
    assert (first.is_paused, second.is_paused) == (False, False)
    assert callbacks == []


def test_uncounted_answer_may_end(budget: ByteBudget) -> None:
    receiver: Receiver = FakeReceiver()
    Intake(budget, soon=lambda call: call()).ended(receiver)
    assert budget.used == 0

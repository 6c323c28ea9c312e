"""Answers side by side within a budget: whole ones first, and the oldest waits for no other."""

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
class Held:
    """A receiver that remembers whether it is held."""

    is_held: bool = False

    def hold(self) -> None:
        self.is_held = True

    def go_on(self) -> None:
        self.is_held = False


@pytest.fixture
def budget() -> ByteBudget:
    return ByteBudget(100)


def test_answers_that_fit_are_never_held(budget: ByteBudget) -> None:
    intake = Intake(budget, soon=lambda call: call())
    receivers = [Held() for _ in range(3)]
    for receiver in receivers:
        intake.received(receiver, 10, 30)
    assert budget.used == 90
    for receiver in receivers:
        intake.received(receiver, 30, 30)
        assert not receiver.is_held
    assert budget.used == 90
    for receiver in receivers:
        intake.ended(receiver)
    assert budget.used == 0


def test_one_that_does_not_fit_waits_for_its_room(budget: ByteBudget) -> None:
    intake = Intake(budget, soon=lambda call: call())
    first, second, third = Held(), Held(), Held()
    intake.received(first, 10, 60)
    intake.received(second, 10, 60)
    intake.received(third, 5, 20)
    assert (first.is_held, second.is_held, third.is_held) == (False, True, False)
    assert budget.used == 60 + 10 + 20
    intake.ended(third)
    assert (first.is_held, second.is_held) == (False, True)
    intake.ended(first)
    assert (first.is_held, second.is_held) == (False, False)
    intake.ended(second)
    assert budget.used == 0


@pytest.mark.parametrize("expected", [0, 150])
def test_the_oldest_goes_on_whatever_it_takes(budget: ByteBudget, expected: int) -> None:
    intake = Intake(budget, soon=lambda call: call())
    first, second = Held(), Held()
    for size in range(10, 160, 10):
        intake.received(first, size, expected)
        intake.received(second, min(size, 20), expected)
    assert (first.is_held, second.is_held) == (False, True)
    intake.ended(first)
    assert not second.is_held


def test_an_answer_of_unknown_length_stops_while_the_budget_is_spent(budget: ByteBudget) -> None:
    intake = Intake(budget, soon=lambda call: call())
    first, second = Held(), Held()
    intake.received(first, 10)
    intake.received(second, 10)
    budget.take(80)
    intake.received(second, 20)
    assert (first.is_held, second.is_held) == (False, True)
    budget.give(80)
    assert not second.is_held


def test_the_oldest_waits_for_results_to_be_written(budget: ByteBudget) -> None:
    intake = Intake(budget, soon=lambda call: call())
    first, second = Held(), Held()
    budget.take_result(60)
    intake.received(first, 50)
    intake.received(second, 10)
    assert (first.is_held, second.is_held) == (True, True)
    budget.give_result(50)
    assert (first.is_held, second.is_held) == (False, False)
    intake.received(first, 150)
    assert not first.is_held


def test_nobody_goes_on_until_what_an_answer_became_is_counted(budget: ByteBudget) -> None:
    later: list[Callable[[], None]] = []
    intake = Intake(budget, soon=later.append)
    first, second = Held(), Held()
    intake.received(first, 60, 60)
    intake.received(second, 10, 60)
    intake.ended(first)
    budget.take_result(60)
    later.pop()()
    assert (first.is_held, second.is_held) == (False, True)
    budget.give_result(60)
    later.pop()()
    assert (first.is_held, second.is_held) == (False, False)
    assert later == []


def test_an_answer_that_was_never_counted_may_end(budget: ByteBudget) -> None:
    receiver: Receiver = Held()
    Intake(budget, soon=lambda call: call()).ended(receiver)
    assert budget.used == 0

"""Large answers that arrive side by side, within a worker's budget of bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lowtide.domain.budgets import ByteBudget


Soon = Callable[[Callable[[], None]], object]


def _soon(call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(call)


class Receiver(Protocol):
    """Whatever an answer comes through, and can be told to wait."""

    def hold(self) -> None:
        """Receive no more for now."""
        ...

    def go_on(self) -> None:
        """Receive again."""
        ...


@dataclass(slots=True)
class _Answer:
    """`expected` is 0 where the length is unknown; `reserved` is counted in the budget."""

    expected: int = 0
    reserved: int = 0
    is_held: bool = False


class Intake:
    """Lets answers in as far as the budget goes.

    One of known length waits until all of it fits, one of unknown length while the budget is spent.
    The oldest waits for results to be written, but for no other answer: it may exceed the budget.
    """

    def __init__(self, budget: ByteBudget, soon: Soon = _soon) -> None:
        self._budget = budget
        self._soon = soon
        self._answers: dict[Receiver, _Answer] = {}
        self._is_due = False
        budget.on_room(self._admit_soon)

    def received(self, receiver: Receiver, size: int, expected: int = 0) -> None:
        """Count what has come of an answer so far; may hold the receiver."""
        answer = self._answers.setdefault(receiver, _Answer(expected))
        if size > answer.reserved:
            self._budget.take(size - answer.reserved)
            answer.reserved = size
        if not answer.is_held and not self._may_go_on(receiver, answer):
            answer.is_held = True
            receiver.hold()

    def ended(self, receiver: Receiver) -> None:
        """Count an answer no more; whoever has it now counts what it became."""
        answer = self._answers.pop(receiver, None)
        if answer is not None:
            self._budget.give(answer.reserved)

    def _may_go_on(self, receiver: Receiver, answer: _Answer) -> bool:
        missing = answer.expected - answer.reserved
        if missing > 0 and self._budget.fits(missing):
            self._budget.take(missing)
            answer.reserved = answer.expected
            return True
        is_complete = missing <= 0 and answer.expected > 0
        has_room = not answer.expected and not self._budget.is_spent
        is_next = self._budget.may_be_exceeded and receiver is next(iter(self._answers))
        return is_complete or has_room or is_next

    def _admit_soon(self) -> None:
        """Admit next, but not now: what an answer that ended has become is counted in a moment."""
        if self._answers and not self._is_due:
            self._is_due = True
            self._soon(self._admit)

    def _admit(self) -> None:
        self._is_due = False
        for receiver, answer in list(self._answers.items()):
            if answer.is_held:
                if not self._may_go_on(receiver, answer):
                    return
                answer.is_held = False
                receiver.go_on()

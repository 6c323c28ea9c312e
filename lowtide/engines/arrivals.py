"""How outcomes that finish one by one reach the caller of `Engine.run` in groups."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lowtide.domain.outcomes import Answered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lowtide.domain.budgets import ByteBudget
    from lowtide.domain.outcomes import Outcome


class Arrivals:
    """Outcomes of one `run` call; whatever arrived since the last look makes one group.

    Bodies count in a budget until the caller, who counts them from then on, asks for the next group.
    """

    def __init__(self, expected: int, budget: ByteBudget | None = None) -> None:
        self._expected = expected
        self._budget = budget
        self._arrived: list[tuple[int, Outcome]] = []
        self._counted = 0
        self._changed = asyncio.Event()
        self._abandoned = False

    def add(self, key: int, outcome: Outcome) -> None:
        """Hand over one outcome."""
        self._arrived.append((key, outcome))
        if self._budget is not None and isinstance(outcome, Answered):
            size = len(outcome.body)
            self._counted += size
            self._budget.take_result(size)
        self._changed.set()

    def abandon(self) -> None:
        """End the groups early: the outcomes that are missing will never come."""
        self._abandoned = True
        self._changed.set()

    def close(self) -> None:
        """Count nothing any more."""
        self._give(self._counted)

    async def groups(self) -> AsyncIterator[Sequence[tuple[int, Outcome]]]:
        """Yield every outcome once, until all have arrived or the call is abandoned."""
        missing = self._expected
        while missing and not self._abandoned:
            await self._changed.wait()
            self._changed.clear()
            group, self._arrived = self._arrived, []
            counted = self._counted
            missing -= len(group)
            if group:
                yield group
            del group
            self._give(counted)

    def _give(self, size: int) -> None:
        self._counted -= size
        if self._budget is not None:
            self._budget.give_result(size)

"""How outcomes that finish one by one reach the caller of `Engine.run` in groups."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lowtide.domain.outcomes import Outcome


class Arrivals:
    """Outcomes of one `run` call; whatever arrived since the last look makes one group."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._arrived: list[tuple[int, Outcome]] = []
        self._changed = asyncio.Event()
        self._abandoned = False

    def add(self, key: int, outcome: Outcome) -> None:
        """Hand over one outcome."""
        self._arrived.append((key, outcome))
        self._changed.set()

    def abandon(self) -> None:
        """End the groups early: the outcomes that are missing will never come."""
        self._abandoned = True
        self._changed.set()

    async def groups(self) -> AsyncIterator[Sequence[tuple[int, Outcome]]]:
        """Yield every outcome once, until all have arrived or the call is abandoned."""
        missing = self._expected
        while missing and not self._abandoned:
            await self._changed.wait()
            self._changed.clear()
            group, self._arrived = self._arrived, []
            missing -= len(group)
            if group:
                yield group

"""Limits on what is in flight to an engine: bytes, requests, and groups of outcomes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from lowtide.engines.outcomes import Answered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import TracebackType

    from lowtide.engines.outcomes import Outcome


class ByteBudget:
    """Counts bodies that were read, answers that arrive and results that are not written yet.

    For one thread. Bytes that are there already are counted whether they fit or not; whoever can
    wait asks first, and listens for room.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._results = 0
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_spent(self) -> bool:
        """Whether there is no room at all."""
        return self.used >= self.limit

    @property
    def may_be_exceeded(self) -> bool:
        """Whether hardly anything is held that goes by itself.

        What waits for room then waits for itself, and one of it has to go on. While results wait to be
        written they make room soon; but were each answer let in that waits for the one before it to be
        written, a slow database would have them all held.
        """
        return self._results <= self.limit // 8

    def fits(self, size: int) -> bool:
        """Whether there is room for `size` more."""
        return self.used + size <= self.limit

    def has_half_for(self, size: int) -> bool:
        """Whether `size` more leave half of the budget free, or nothing else is held.

        What starts asks for this, so that answers still find room to end what has started.
        """
        return not self.used or self.used + size <= self.limit // 2

    def take(self, size: int) -> None:
        """Count bytes that are held from now on."""
        self.used += size

    def give(self, size: int) -> None:
        """Count bytes no more, and let the listeners know."""
        if not size:
            return
        self.used -= size
        for listener in self._listeners:
            listener()

    def take_result(self, size: int) -> None:
        """Count a result, which is held until it is written."""
        self._results += size
        self.take(size)

    def give_result(self, size: int) -> None:
        """Count a result no more."""
        self._results -= size
        self.give(size)

    def on_room(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever bytes are given back."""
        self._listeners.append(listener)


class Slots:
    """Enter it to take one of at most `limit` slots; first come, first served."""

    def __init__(self, most: int) -> None:
        self._most = self._limit = most
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def limit(self, in_flight: int) -> None:
        """Change the limit, up to the number that it began with; nobody loses a slot."""
        self._limit = max(0, min(in_flight, self._most))
        self._hand_out()

    async def __aenter__(self) -> None:
        if self._taken < self._limit and not self._waiting:
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The slot was given, and then the wait for it was cancelled.
                self._give_back()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()

    def _give_back(self) -> None:
        self._taken -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._taken < self._limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)


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

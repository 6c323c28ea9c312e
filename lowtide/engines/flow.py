"""Flow control for an engine: a byte budget, request slots, and groups of outcomes."""

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
    """Counts the bytes of bodies read, answers arriving, and results not yet written.

    Not thread-safe. Bytes already in memory count whether they fit or not; a consumer that can wait
    checks first, and listens for room.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._results = 0
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_spent(self) -> bool:
        """True while no room is left."""
        return self.used >= self.limit

    @property
    def may_be_exceeded(self) -> bool:
        """True while few of the bytes are results, which make room by being written.

        Answers that wait for room then wait for each other, and one has to proceed. While many
        results are unwritten, answers wait for them: otherwise a slow database would let all
        answers into memory.
        """
        return self._results <= self.limit // 8

    def fits(self, size: int) -> bool:
        """Return whether there is room for `size` more."""
        return self.used + size <= self.limit

    def has_half_for(self, size: int) -> bool:
        """Return whether `size` more leave half of the budget free, or the budget is unused.

        New work asks for this, so that the answers of running work still find room.
        """
        return not self.used or self.used + size <= self.limit // 2

    def take(self, size: int) -> None:
        """Count bytes as used."""
        self.used += size

    def give(self, size: int) -> None:
        """Free bytes and call the listeners."""
        if not size:
            return
        self.used -= size
        for listener in self._listeners:
            listener()

    def take_result(self, size: int) -> None:
        """Count a result as used until it is written."""
        self._results += size
        self.take(size)

    def give_result(self, size: int) -> None:
        """Free the bytes of a result."""
        self._results -= size
        self.give(size)

    def on_room(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever bytes are freed."""
        self._listeners.append(listener)


class Slots:
    """A context manager that takes one of a limited number of slots, first come, first served."""

    def __init__(self, count: int) -> None:
        self._count = self._limit = count
        self._in_use = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    def limit(self, in_flight: int) -> None:
        """Change the limit, up to the initial one; slots already taken are kept."""
        self._limit = max(0, min(in_flight, self._count))
        self._grant()

    async def __aenter__(self) -> None:
        if self._in_use < self._limit and not self._waiters:
            self._in_use += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # The slot was granted before the wait for it was cancelled.
                self._free()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._free()

    def _free(self) -> None:
        self._in_use -= 1
        self._grant()

    def _grant(self) -> None:
        while self._waiters and self._in_use < self._limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._in_use += 1
                waiter.set_result(None)


class Arrivals:
    """Outcomes of one `run` call; those that arrive between two iterations form a group.

    Bodies count in the budget until the consumer, which counts them itself by then, asks for the
    next group.
    """

    def __init__(self, expected: int, budget: ByteBudget | None = None) -> None:
        self._expected = expected
        self._budget = budget
        self._arrived: list[tuple[int, Outcome]] = []
        self._counted = 0
        self._changed = asyncio.Event()
        self._abandoned = False

    def add(self, key: int, outcome: Outcome) -> None:
        """Add one outcome."""
        self._arrived.append((key, outcome))
        if self._budget is not None and isinstance(outcome, Answered):
            size = len(outcome.body)
            self._counted += size
            self._budget.take_result(size)
        self._changed.set()

    def abandon(self) -> None:
        """End the groups early: the missing outcomes will never arrive."""
        self._abandoned = True
        self._changed.set()

    def close(self) -> None:
        """Free the bytes that still count in the budget."""
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

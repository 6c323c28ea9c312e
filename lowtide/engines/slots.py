"""How many requests are in flight: a semaphore whose limit may change."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


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

"""How many bytes a worker may hold at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


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

"""Which pools stand still."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.pools import OpenDeadlines, Pool, PoolPause, PoolStanding


class PoolRegister(Protocol):
    """Where pauses are kept. Each change is audited in its own transaction."""

    def standings(self) -> Sequence[PoolStanding]:
        """Return how each pool stands; raises Unavailable."""
        ...

    def held_deadlines(self) -> OpenDeadlines:
        """Return how many open batches are not at risk."""
        ...

    def pause(self, pool: Pool, actor: str) -> PoolPause:
        """Have a pool's workers claim nothing from now on; return the pause that there is."""
        ...

    def resume(self, pool: Pool, actor: str) -> PoolPause | None:
        """End a pause; return the one there was."""
        ...

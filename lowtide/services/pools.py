"""Pausing and resuming pools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.domain.pools import effect_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.pools import PauseEffect, Pool, PoolPause, PoolStanding
    from lowtide.domain.visitors import Visitor
    from lowtide.ports import PoolRegister


class Pools:
    """Where an operator of the whole installation pauses pools."""

    def __init__(self, register: PoolRegister) -> None:
        self._register = register

    def standings(self) -> Sequence[PoolStanding]:
        """Return how each pool stands; raises Unavailable."""
        return self._register.standings()

    def effect(self, visitor: Visitor, pool: Pool) -> PauseEffect:
        """Return what a pause would do, and change nothing; raises Forbidden."""
        visitor.require_operator_of_all()
        return effect_of(pool, self._register.standings(), self._register.held_deadlines())

    def pause(self, visitor: Visitor, pool: Pool) -> PoolPause:
        """Have a pool's workers claim nothing until it is resumed; raises Forbidden.

        What they hold they end. A pool that is paused already stays so, by whoever paused it.
        """
        visitor.require_operator_of_all()
        return self._register.pause(pool, visitor.name)

    def resume(self, visitor: Visitor, pool: Pool) -> PoolPause | None:
        """Let a pool's workers claim again; raises Forbidden.

        Returns the pause that ended, None where there was none.
        """
        visitor.require_operator_of_all()
        return self._register.resume(pool, visitor.name)

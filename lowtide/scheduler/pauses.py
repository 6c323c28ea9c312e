"""Pausing and resuming pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.core.pools import OpenDeadlines, Pool, PoolPause, PoolState, effect_of
from lowtide.database.connections import begin
from lowtide.tenants.audit import note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.core.pools import PauseEffect
    from lowtide.tenants.sign_in import Principal


_PAUSES = text("SELECT pool, since, paused_by FROM paused_pools ORDER BY since, pool")
_STANDINGS = text("""
SELECT p.pool, (SELECT count(*) FROM queue q WHERE q.pool = p.pool) AS queued,
  (SELECT count(*) FROM claims c WHERE c.pool = p.pool) AS running,
  (SELECT count(*) FROM workers w WHERE w.pool = p.pool AND w.expires_at > now()) AS workers
FROM unnest(cast(:pools AS text[])) WITH ORDINALITY AS p (pool, place) ORDER BY place
""")
HELD = """
SELECT count(*) AS batches, min(deadline) AS first FROM batches
WHERE status IN ('validating', 'in_progress') AND drained_at IS NULL AND NOT expiring AND NOT at_risk
"""
_HELD = text(HELD)
_PAUSE = text("""
INSERT INTO paused_pools (pool, paused_by) VALUES (:pool, :actor) ON CONFLICT DO NOTHING
RETURNING pool, since, paused_by
""")
_RESUME = text("DELETE FROM paused_pools WHERE pool = :pool RETURNING pool, since, paused_by")


class PauseStore:
    """The pauses of pools, over the operators' database role."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def standings(self) -> Sequence[PoolState]:
        """Return the state of each pool; raises Unavailable."""
        with begin(self._engine) as connection:
            pauses = {pause.pool: pause for pause in read_pauses(connection)}
            rows = connection.execute(_STANDINGS, {"pools": [pool.value for pool in Pool]})
            return [
                PoolState(
                    Pool(row.pool), row.queued, row.running, row.workers, pauses.get(Pool(row.pool))
                )
                for row in rows
            ]

    def held_deadlines(self) -> OpenDeadlines:
        """Return the number of open batches not at risk, and their first deadline."""
        with begin(self._engine) as connection:
            row = connection.execute(_HELD).one()
            return OpenDeadlines(row.batches, row.first)

    def pause(self, pool: Pool, actor: str) -> PoolPause:
        """Stop a pool's workers from claiming; return the pause in effect.

        A claim in progress keeps the requests that it has taken.
        """
        while True:  # the pool may be resumed between the two statements
            with begin(self._engine) as connection:
                row = connection.execute(_PAUSE, {"pool": pool.value, "actor": actor}).one_or_none()
                if row is not None:
                    note(connection, None, actor, "pool.paused", [pool.value])
                    return _pause(row)
                for pause in read_pauses(connection):
                    if pause.pool is pool:
                        return pause

    def resume(self, pool: Pool, actor: str) -> PoolPause | None:
        """End a pause and return it; None if there was none."""
        with begin(self._engine) as connection:
            row = connection.execute(_RESUME, {"pool": pool.value}).one_or_none()
            if row is None:
                return None
            note(connection, None, actor, "pool.resumed", [pool.value])
            return _pause(row)


def read_pauses(connection: Connection) -> tuple[PoolPause, ...]:
    """Return the pauses in effect, longest first."""
    return tuple(_pause(row) for row in connection.execute(_PAUSES))


def _pause(row: Any) -> PoolPause:
    return PoolPause(Pool(row.pool), row.since, row.paused_by)


class Pools:
    """The pausing and resuming of pools by an operator of the whole installation."""

    def __init__(self, store: PauseStore) -> None:
        self._store = store

    def standings(self) -> Sequence[PoolState]:
        """Return the state of each pool; raises Unavailable."""
        return self._store.standings()

    def effect(self, principal: Principal, pool: Pool) -> PauseEffect:
        """Return the effect that a pause would have, without pausing; raises Forbidden."""
        principal.require_operator_of_all()
        return effect_of(pool, self._store.standings(), self._store.held_deadlines())

    def pause(self, principal: Principal, pool: Pool) -> PoolPause:
        """Pause a pool: its workers claim nothing until it is resumed; raises Forbidden.

        They finish the requests already claimed. A pool already paused keeps that pause.
        """
        principal.require_operator_of_all()
        return self._store.pause(pool, principal.name)

    def resume(self, principal: Principal, pool: Pool) -> PoolPause | None:
        """Resume a pool: its workers claim again; raises Forbidden.

        Returns the pause that ended; None if there was none.
        """
        principal.require_operator_of_all()
        return self._store.resume(pool, principal.name)

"""Pausing and resuming pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.core.errors import NotFound
from lowtide.core.pools import (
    DEFAULT_FLEET,
    FleetPool,
    OpenDeadlines,
    Pool,
    PoolPause,
    PoolState,
    effect_of,
)
from lowtide.database.connections import begin
from lowtide.tenants.audit import note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.core.pools import PauseEffect
    from lowtide.tenants.sign_in import Principal


_PAUSES = text("""
SELECT fleet, pool, since, paused_by FROM paused_pools ORDER BY since, fleet, pool
""")
_STANDINGS = text("""
SELECT f.name AS fleet, p.pool,
  (SELECT coalesce(sum(size), 0)::bigint FROM queued_runs q
    WHERE q.fleet = f.name AND q.pool = p.pool) AS queued,
  (SELECT coalesce(sum(size), 0)::bigint FROM claimed_runs c
    WHERE c.fleet = f.name AND c.pool = p.pool) AS running,
  (SELECT count(*) FROM workers w
    WHERE w.fleet = f.name AND w.pool = p.pool AND w.expires_at > now()) AS workers
FROM fleets f CROSS JOIN unnest(cast(:pools AS text[])) WITH ORDINALITY AS p (pool, place)
ORDER BY f.name, place
""")
HELD = """
SELECT count(*) AS batches, min(deadline) AS first FROM batches b
WHERE status IN ('validating', 'in_progress') AND drained_at IS NULL AND NOT expiring AND NOT at_risk
  AND (fleet = :fleet OR fleet IS NULL AND EXISTS (
    SELECT FROM batch_fleets p WHERE p.batch_id = b.id AND p.fleet = :fleet))
"""
_HELD = text(HELD)
_IS_FLEET = text("SELECT EXISTS (SELECT FROM fleets WHERE name = :fleet)")
_FLEETS = text("SELECT name FROM fleets ORDER BY name")
_PAUSE = text("""
INSERT INTO paused_pools (fleet, pool, paused_by) VALUES (:fleet, :pool, :actor)
ON CONFLICT DO NOTHING RETURNING fleet, pool, since, paused_by
""")
_RESUME = text("""
DELETE FROM paused_pools WHERE fleet = :fleet AND pool = :pool
RETURNING fleet, pool, since, paused_by
""")


class PauseStore:
    """The pauses of pools, over the operators' database role."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def standings(self) -> Sequence[PoolState]:
        """Return the state of each fleet's pools; raises Unavailable."""
        with begin(self._engine) as connection:
            pauses = {FleetPool(each.fleet, each.pool): each for each in read_pauses(connection)}
            rows = connection.execute(_STANDINGS, {"pools": [pool.value for pool in Pool]})
            return [
                PoolState(
                    pool := Pool(row.pool),
                    row.queued,
                    row.running,
                    row.workers,
                    pauses.get(FleetPool(row.fleet, pool)),
                    row.fleet,
                )
                for row in rows
            ]

    def held_deadlines(self, fleet: str = DEFAULT_FLEET) -> OpenDeadlines:
        """Return the number of a fleet's open batches not at risk, and their first deadline."""
        with begin(self._engine) as connection:
            row = connection.execute(_HELD, {"fleet": fleet}).one()
            return OpenDeadlines(row.batches, row.first)

    def require_fleet(self, fleet: str) -> None:
        """Raise NotFound for a fleet that there is not, with the names that there are."""
        with begin(self._engine) as connection:
            if connection.execute(_IS_FLEET, {"fleet": fleet}).scalar_one():
                return
            names = ", ".join(connection.execute(_FLEETS).scalars())
        raise NotFound(f"Fleet {fleet!r} not found: there are {names}.", param="fleet")

    def pause(self, pool: Pool, actor: str, fleet: str = DEFAULT_FLEET) -> PoolPause:
        """Stop the workers of a fleet's pool from claiming; return the pause in effect.

        A claim in progress keeps the requests that it has taken.
        """
        place = FleetPool(fleet, pool)
        while True:  # the pool may be resumed between the two statements
            with begin(self._engine) as connection:
                row = connection.execute(_PAUSE, {**_keys(place), "actor": actor}).one_or_none()
                if row is not None:
                    note(connection, None, actor, "pool.paused", [place.key])
                    return _pause(row)
                for pause in read_pauses(connection):
                    if (pause.fleet, pause.pool) == place:
                        return pause

    def resume(self, pool: Pool, actor: str, fleet: str = DEFAULT_FLEET) -> PoolPause | None:
        """End a pause and return it; None if there was none."""
        place = FleetPool(fleet, pool)
        with begin(self._engine) as connection:
            row = connection.execute(_RESUME, _keys(place)).one_or_none()
            if row is None:
                return None
            note(connection, None, actor, "pool.resumed", [place.key])
            return _pause(row)


def read_pauses(connection: Connection) -> tuple[PoolPause, ...]:
    """Return the pauses in effect, longest first."""
    return tuple(_pause(row) for row in connection.execute(_PAUSES))


def _pause(row: Any) -> PoolPause:
    return PoolPause(Pool(row.pool), row.since, row.paused_by, row.fleet)


def _keys(place: FleetPool) -> dict[str, str]:
    return {"fleet": place.fleet, "pool": place.pool.value}


def place_of(subject: str) -> FleetPool:
    """Return the fleet's pool of its `key`."""
    fleet, _, pool = subject.rpartition("/")
    return FleetPool(fleet or DEFAULT_FLEET, Pool(pool))


class Pools:
    """The pausing and resuming of pools by an operator of the whole installation."""

    def __init__(self, store: PauseStore) -> None:
        self._store = store

    def standings(self) -> Sequence[PoolState]:
        """Return the state of each fleet's pools; raises Unavailable."""
        return self._store.standings()

    def effect(self, principal: Principal, pool: Pool, fleet: str = DEFAULT_FLEET) -> PauseEffect:
        """Return the effect that a pause would have, without pausing.

        Raises Forbidden, or NotFound for an unknown fleet.
        """
        principal.require_operator_of_all()
        self._store.require_fleet(fleet)
        deadlines = self._store.held_deadlines(fleet)
        return effect_of(FleetPool(fleet, pool), self._store.standings(), deadlines)

    def pause(self, principal: Principal, pool: Pool, fleet: str = DEFAULT_FLEET) -> PoolPause:
        """Pause a fleet's pool: its workers claim nothing until it is resumed.

        They finish the requests already claimed. A pool already paused keeps that pause. Raises
        Forbidden, or NotFound for an unknown fleet.
        """
        principal.require_operator_of_all()
        self._store.require_fleet(fleet)
        return self._store.pause(pool, principal.name, fleet)

    def resume(
        self, principal: Principal, pool: Pool, fleet: str = DEFAULT_FLEET
    ) -> PoolPause | None:
        """Resume a fleet's pool: its workers claim again.

        Returns the pause that ended; None if there was none. Raises Forbidden, or NotFound for an
        unknown fleet.
        """
        principal.require_operator_of_all()
        self._store.require_fleet(fleet)
        return self._store.resume(pool, principal.name, fleet)

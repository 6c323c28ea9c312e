"""The open work of all tenants, the workers that run and their rates: no tenant's own data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.domain.outlook import OpenWork, Outlook
from lowtide.domain.pools import Pool
from lowtide.domain.rates import Rate
from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_WORK = text("""
SELECT now() AS at, ARRAY(SELECT pool FROM paused_pools) AS paused, w.*
FROM (SELECT 1) AS always LEFT JOIN open_work() w ON w.lines > 0 ORDER BY w.deadline
""")
_WORKERS = text("SELECT pool, replicas FROM living_workers()")
_RATES = text("SELECT pool, model, seconds, lines, squares, weights FROM service_rates")


def read_outlook(connection: Connection) -> Outlook:
    """Return what lies ahead as the caller's transaction sees it."""
    rows = connection.execute(_WORK).all()
    return Outlook(
        at=rows[0].at,
        work=tuple(
            OpenWork(row.deadline, row.model, row.lines, row.ended, row.retried)
            for row in rows
            if row.lines is not None
        ),
        workers={Pool(row.pool): row.replicas for row in connection.execute(_WORKERS)},
        rates={
            (Pool(row.pool), row.model): Rate(row.seconds, row.lines, row.squares, row.weights)
            for row in connection.execute(_RATES)
        },
        paused=frozenset(map(Pool, rows[0].paused)),
    )


class PostgresOutlook:
    """Port OutlookSource."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def look(self) -> Outlook:
        """Return the open work of all tenants, the workers that run and their rates."""
        with begin(self._engine) as connection:
            return read_outlook(connection)

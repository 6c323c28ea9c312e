"""The open lines of all tenants, by deadline, and the workers that run: no tenant's own data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.domain.demand import Demand
from lowtide.domain.estimates import Crew
from lowtide.domain.outlook import Outlook
from lowtide.domain.pools import Pool
from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Connection, Engine

_DEMAND = text("""
SELECT now() AS at, d.deadline, d.lines
FROM (SELECT 1) AS always LEFT JOIN open_demand() d ON true ORDER BY d.deadline
""")
_WORKERS = text("SELECT pool, replicas FROM living_workers()")


def read_demand(connection: Connection) -> tuple[datetime, tuple[Demand, ...]]:
    """Return the database's time and the open lines of all tenants, in deadline order."""
    rows = connection.execute(_DEMAND).all()
    demand = tuple(Demand(row.deadline, int(row.lines)) for row in rows if row.lines)
    return rows[0].at, demand


class PostgresOutlook:
    """Port OutlookSource. `rates` are the lines a second of one replica, by pool."""

    def __init__(self, engine: Engine, rates: Mapping[Pool, float]) -> None:
        self._engine = engine
        self._rates = rates

    def look(self) -> Outlook:
        """Return the open lines of all tenants and the workers that run."""
        with begin(self._engine) as connection:
            at, demand = read_demand(connection)
            workers = connection.execute(_WORKERS).all()
        crews = tuple(Crew(row.replicas, self._rates[Pool(row.pool)]) for row in workers)
        return Outlook(at, demand, crews)

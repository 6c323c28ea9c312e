"""The read model behind the portal's landing page."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from lowtide.domain.errors import Unavailable
from lowtide.domain.overview import Overview, PoolLoad, Totals
from lowtide.domain.pools import Pool
from lowtide.postgres.batches import batch_of
from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

# The status lists repeat the predicates of the indexes batches_active and batches_ended.
TOTALS = """
SELECT now() AS at, (SELECT count(*) FROM batches) AS batches, active.*, ended.*
FROM (
  SELECT count(*) AS in_progress, count(*) FILTER (WHERE at_risk) AS at_risk
  FROM batches WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
) active, (
  SELECT count(*) FILTER (WHERE status = 'completed') AS completed,
    count(*) FILTER (WHERE status IN ('failed', 'expired')) AS failed,
    count(*) FILTER (WHERE status = 'cancelled') AS cancelled
  FROM batches WHERE status IN ('completed', 'failed', 'expired', 'cancelled')
    AND coalesce(completed_at, failed_at, expired_at, cancelled_at) > now() - interval '24 hours'
) ended
"""
POOLS = """
SELECT p.pool, (SELECT count(*) FROM queue q WHERE q.pool = p.pool) AS queued,
  (SELECT count(*) FROM claims c WHERE c.pool = p.pool) AS running,
  (SELECT count(*) FROM workers w WHERE w.pool = p.pool AND w.expires_at > now()) AS workers
FROM (VALUES (1, 'spot'), (2, 'dedicated')) AS p (place, pool) ORDER BY place
"""
RECENT = "SELECT * FROM batch_states ORDER BY id DESC LIMIT :limit"

_CHECK = text("SELECT 1")
_TOTALS = text(TOTALS)
_POOLS = text(POOLS)
_RECENT = text(RECENT)


class PostgresOverview:
    """Port OverviewSource, for a role that sees every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def check(self) -> None:
        """Raise Unavailable when the database does not answer."""
        with _reading(self._engine) as connection:
            connection.execute(_CHECK)

    def read(self, *, recent: int) -> Overview:
        """Return totals, pools and the newest `recent` batches; raises Unavailable."""
        with _reading(self._engine) as connection:
            totals = connection.execute(_TOTALS).one()
            pools = connection.execute(_POOLS).all()
            batches = connection.execute(_RECENT, {"limit": recent}).all()
        return Overview(
            at=totals.at,
            totals=Totals(
                batches=totals.batches,
                in_progress=totals.in_progress,
                at_risk=totals.at_risk,
                completed=totals.completed,
                failed=totals.failed,
                cancelled=totals.cancelled,
            ),
            pools=tuple(
                PoolLoad(Pool(row.pool), row.queued, row.running, row.workers) for row in pools
            ),
            recent=tuple(batch_of(row) for row in batches),
        )


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    """Open a transaction to look at, whatever is wrong with the database."""
    try:
        with begin(engine) as connection:
            yield connection
    except SQLAlchemyError as error:
        # A page that watches must outlive a schema that is not there yet or a refused password.
        raise Unavailable("The database answers, but refuses to be read.") from error

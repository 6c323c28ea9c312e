"""The index of custom_ids, which the scheduler fills after a split."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.database.connections import begin

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import BatchId, TenantId


_ENQUEUE = text("""
INSERT INTO search_backlog (batch_id, tenant_id, first_line, last_line)
VALUES (:batch, :tenant, :first, :last)
""")
# One statement, so that every search finds a request once: in the backlog or in the index. Sorted
# rows touch each page of the index once.
INDEX = """
WITH oldest AS (
  DELETE FROM search_backlog WHERE (batch_id, first_line) = (
    SELECT batch_id, first_line FROM search_backlog ORDER BY batch_id, first_line LIMIT 1
    FOR UPDATE SKIP LOCKED)
  RETURNING batch_id, first_line, last_line
)
INSERT INTO custom_ids (batch_id, line, tenant_id, custom_id)
SELECT batch_id, line, tenant_id, custom_id FROM requests
WHERE batch_id = (SELECT batch_id FROM oldest)
  AND line BETWEEN (SELECT first_line FROM oldest) AND (SELECT last_line FROM oldest)
ORDER BY custom_id COLLATE "C"
"""
_INDEX = text(INDEX)


def enqueue(
    connection: Connection, batch: BatchId, tenant: TenantId, first_line: int, lines: int
) -> None:
    """Leave a split segment of a batch to the indexer, in the caller's transaction."""
    last_line = first_line + lines - 1
    parameters = {"batch": batch, "tenant": tenant, "first": first_line, "last": last_line}
    connection.execute(_ENQUEUE, parameters)


class SearchIndexer:
    """Index the custom_ids of split segments, one transaction each, oldest first."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def index(self, *, limit: int, seconds: float = math.inf) -> int:
        """Index segments until at least `limit` requests are indexed, `seconds` pass, or none is left.

        Return the number of requests. Concurrent calls index different ones.
        """
        total = 0
        end = time.monotonic() + seconds
        while total < limit and time.monotonic() < end:
            with begin(self._engine) as connection:
                indexed = connection.execute(_INDEX).rowcount
            if not indexed:
                break
            total += indexed
        return total

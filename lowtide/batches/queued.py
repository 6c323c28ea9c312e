"""Requests of an ending batch that still wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from lowtide.core.ids import BatchId

_DROP = text("""
WITH dropped AS (DELETE FROM queued_runs WHERE batch_id = ANY(:batches) RETURNING size)
SELECT coalesce(sum(size), 0)::integer FROM dropped
""")
_ARE_LEFT = text("SELECT EXISTS (SELECT FROM queued_runs WHERE batch_id = ANY(:batches))")


def drop_queued(connection: Connection, batches: Sequence[BatchId]) -> int:
    """Drop the waiting requests of batches that are ending; return how many.

    A claim that holds a run may leave the rest of it in a new row, which the statement that waited
    for the claim does not see.
    """
    parameters, dropped = {"batches": list(batches)}, 0
    while connection.execute(_ARE_LEFT, parameters).scalar_one():
        dropped += connection.execute(_DROP, parameters).scalar_one()
    return dropped

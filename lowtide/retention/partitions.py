"""Partitions of the tables of requests: a day each, by the ids of batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.database.connections import begin, sqlstate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Engine


# Those of batches that wait for their split too: it makes sure of them, but a clock may be wrong.
_MAKE_COMING = text("""
SELECT coalesce(sum(make_partitions(first_id(day))), 0) FROM (
  SELECT (now() AT TIME ZONE 'UTC')::date + n AS day FROM generate_series(0, :days) n
  UNION SELECT day_of(id) FROM batches
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')) days
""")
# Whoever has read that a batch has data gets a minute to read it.
ENDED = """
SELECT name FROM data_partitions p
WHERE high <= first_id((now() AT TIME ZONE 'UTC')::date)
  AND NOT EXISTS (
    SELECT FROM batches WHERE data_ended_at IS NULL AND id < p.high
      AND id >= coalesce(p.low, '00000000-0000-0000-0000-000000000000') OFFSET 0)
  AND NOT EXISTS (
    SELECT FROM batches WHERE data_ended_at IS NOT NULL AND NOT data_deleted AND id < p.high
      AND id >= coalesce(p.low, '00000000-0000-0000-0000-000000000000')
      AND data_ended_at > now() - interval '1 minute' OFFSET 0)
ORDER BY high, name
"""
_ENDED = text(ENDED)
_DROP = text("SELECT drop_partition(:name)")
_RANGES = text("SELECT low, high FROM data_partitions ORDER BY low NULLS FIRST")
_SIZES = text("""
SELECT count(DISTINCT high) AS days,
  coalesce(sum(pg_total_relation_size(relation)) FILTER (WHERE name = ANY(:ended)), 0) AS ended_bytes
FROM data_partitions
""")
_LOWEST, _HIGHEST = UUID(int=0), UUID(int=2**128 - 1)
DAYS_AHEAD: Final = 3
# Not available within the time, or a batch that still has data since the list was made.
_POSTPONED = ("55P03", "55006")


@dataclass(frozen=True, slots=True)
class Range:
    """Ids from `low` up to, but not including, `high`."""

    low: UUID
    high: UUID


class PartitionStore:
    """Make and drop partitions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def make_coming(self) -> int:
        """Make the partitions of today, the coming days and all active batches; return how many."""
        with begin(self._engine) as connection:
            return int(connection.execute(_MAKE_COMING, {"days": DAYS_AHEAD}).scalar_one())

    def ended(self) -> Sequence[str]:
        """Return the partitions of past days in which no batch has data, oldest first."""
        with begin(self._engine) as connection:
            return connection.execute(_ENDED).scalars().all()

    def drop(self, name: str) -> bool:
        """Drop a partition; return False if it is in use, to be tried again."""
        with begin(self._engine) as connection:
            try:
                return bool(connection.execute(_DROP, {"name": name}).scalar_one())
            except DBAPIError as error:
                if sqlstate(error) not in _POSTPONED:
                    raise
                connection.rollback()
                return False

    def gaps(self) -> Sequence[Range]:
        """Return the ranges of ids for which there is no partition."""
        with begin(self._engine) as connection:
            rows = connection.execute(_RANGES).all()
        return gaps_between((row.low or _LOWEST, row.high) for row in rows)

    def sizes(self, ended: Sequence[str]) -> tuple[int, int]:
        """Return the number of days with a partition, and the bytes of the `ended` partitions."""
        with begin(self._engine) as connection:
            row = connection.execute(_SIZES, {"ended": list(ended)}).one()
        return row.days, int(row.ended_bytes)


def gaps_between(ranges: Iterable[tuple[UUID, UUID]]) -> list[Range]:
    """Return the ids that no range contains; the ranges are in the order of their low ends."""
    ends = [_LOWEST]
    starts = []
    for low, high in ranges:
        starts.append(low)
        ends.append(max(ends[-1], high))
    starts.append(_HIGHEST)
    return [Range(low, high) for low, high in zip(ends, starts, strict=True) if low < high]

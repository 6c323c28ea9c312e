"""SQL that moves waiting requests between pools and fleets, from the end of their lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_HISTORY: Final = "queued_at, attempts, interruptions, lost_leases"


def last_lines(given: str, lane: str) -> str:
    """Return a query for up to `lines` requests of each `batch` in `given`, which claims reach last.

    Its rows are runs of the queue: their batch, place, and how many requests to take of their end.
    `lane` is a condition for runs `q`. A row per line ends the scan at the last one that is needed, so
    that no other run is locked.
    """
    return f"""
  SELECT batch, place, count(*)::integer AS wanted FROM (
    SELECT g.batch, last.place FROM {given} g CROSS JOIN LATERAL (
      SELECT waiting.place FROM (
        SELECT q.ctid AS place, q.size FROM queued_runs q WHERE q.batch_id = g.batch AND {lane}
        ORDER BY q.available_at DESC, q.line DESC LIMIT g.lines FOR UPDATE SKIP LOCKED) waiting
      CROSS JOIN LATERAL generate_series(1, waiting.size) LIMIT g.lines) last) line
  GROUP BY batch, place
"""  # noqa: S608 - constants of ours


def moved(found: Sequence[str], *, fleet: str, pool: str, escalated: bool) -> str:
    """Return the CTEs `taken` and others, which move what these queries for `last_lines` found.

    What is left of a run stays where it was, and keeps its row. The rest gets one of its own, which is
    why `open_batches` comes first. The ARRAY form keeps the plan a Tid Scan whatever the estimates.
    """
    places = " UNION ALL ".join(f"SELECT place, wanted FROM {name}" for name in found)  # noqa: S608
    place = f"""{fleet}, '{pool}', {str(escalated).lower()}"""
    available = "greatest(available_at, statement_timestamp())"
    return f"""taken AS MATERIALIZED (
  SELECT q.*, f.wanted, CASE WHEN f.wanted = q.size THEN q.lines
    ELSE q.lines - first_lines(q.lines, q.size - f.wanted) END AS mine
  FROM ({places}) f CROSS JOIN LATERAL (
    SELECT ctid AS place, * FROM queued_runs WHERE ctid = f.place OFFSET 0) q
), moved AS (
  UPDATE queued_runs SET (fleet, pool, escalated, available_at) = ROW({place}, {available})
  WHERE ctid = ANY(ARRAY(SELECT place FROM taken WHERE wanted = size))
), shortened AS (
  UPDATE queued_runs q SET size = q.size - t.wanted, lines = q.lines - t.mine
  FROM taken t
  WHERE q.ctid = ANY(ARRAY(SELECT place FROM taken WHERE wanted < size)) AND t.place = q.ctid
), apart AS (
  INSERT INTO queued_runs (batch_id, tenant_id, deadline, line, size, lines, {_HISTORY}, fleet, pool,
    escalated, available_at)
  SELECT batch_id, tenant_id, deadline, lower(mine), wanted, mine, {_HISTORY}, {place}, {available}
  FROM taken WHERE wanted < size
)"""  # noqa: S608 - constants of ours


def open_batches(given: str) -> str:
    """Return a query for the rows of `given`, a query, whose `batch` is open, and stays so.

    The end of a batch drops what is queued, but not a row that appears meanwhile. Batches that are
    changing right now are left out instead of waited for: their change may wait for a run.
    """
    return f"""
  SELECT g.* FROM ({given}) g CROSS JOIN LATERAL (
    SELECT FROM batches WHERE id = g.batch AND status = 'in_progress' AND drained_at IS NULL
      AND NOT expiring FOR SHARE SKIP LOCKED) b
"""  # noqa: S608 - constants of ours

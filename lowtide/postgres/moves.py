"""Lines between pools: to dedicated, back to spot, and out of the hands of spot workers.

A line that moves becomes available anew, so that it lies behind what workers of its new pool have
seen. What somebody else holds this very moment is left where it is: the next tick sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.postgres.queue import requeue

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Connection

    from lowtide.domain.escalation import Move
    from lowtide.domain.ids import BatchId

# From the end, which spot would reach last; lines that wait out a delay only when no others are left.
ESCALATE = """
WITH moved AS (
  UPDATE queue SET pool = 'dedicated', escalated = true,
    available_at = greatest(available_at, statement_timestamp())
  WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM queue WHERE batch_id = :batch AND pool = 'spot'
      AND (available_at <= statement_timestamp()) = :ready
    ORDER BY available_at DESC, line DESC LIMIT :lines FOR UPDATE SKIP LOCKED))
  RETURNING tenant_id
), counted AS (
  SELECT tenant_id, count(*) AS lines FROM moved GROUP BY tenant_id
), noted AS (
  INSERT INTO request_events (tenant_id, batch_id, lines, kind, pool, detail)
  SELECT tenant_id, :batch, lines, 'escalated', 'dedicated',
    'Moved to dedicated to meet the deadline' FROM counted
)
INSERT INTO tallies AS t (batch_id, pool, lease_id, tenant_id, escalated)
SELECT :batch, 'dedicated', '00000000-0000-0000-0000-000000000000', tenant_id, lines FROM counted
ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET escalated = t.escalated + excluded.escalated
RETURNING (SELECT lines FROM counted) AS lines
"""
_ESCALATE = text(ESCALATE)
GIVE_BACK = """
WITH moved AS (
  UPDATE queue SET pool = 'spot', escalated = false,
    available_at = greatest(available_at, statement_timestamp())
  WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM queue WHERE batch_id = :batch AND pool = 'dedicated'
    ORDER BY available_at DESC, line DESC LIMIT :lines FOR UPDATE SKIP LOCKED))
  RETURNING tenant_id
), counted AS (
  SELECT tenant_id, count(*) AS lines FROM moved GROUP BY tenant_id
), tallied AS (
  UPDATE tallies t SET escalated = greatest(0, t.escalated - c.lines) FROM counted c
  WHERE t.batch_id = :batch AND t.pool = 'dedicated'
    AND t.lease_id = '00000000-0000-0000-0000-000000000000'
)
INSERT INTO request_events (tenant_id, batch_id, lines, kind, pool, detail)
SELECT tenant_id, :batch, lines, 'escalated', 'spot', :reason FROM counted
RETURNING lines
"""
_GIVE_BACK = text(GIVE_BACK)
# The last ones taken have the least to lose.
_REVOKE = text("""
DELETE FROM claims WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM claims WHERE batch_id = :batch AND pool = 'spot'
  ORDER BY claimed_at DESC, line DESC LIMIT :lines FOR UPDATE SKIP LOCKED))
RETURNING batch_id, tenant_id, lease_id, deadline, queued_at, line, attempts, interruptions,
  lost_leases, escalated, pool, 'Taken from its worker to meet the deadline' AS reason, 0 AS delay,
  false AS failed, true AS interrupted
""")
_ESCALATE_THESE = text("""
WITH moved AS (
  UPDATE queue SET pool = 'dedicated', escalated = true
  WHERE batch_id = :batch AND line = ANY(:lines) AND pool = 'spot' RETURNING tenant_id
), counted AS (
  SELECT tenant_id, count(*) AS lines FROM moved GROUP BY tenant_id
)
INSERT INTO tallies AS t (batch_id, pool, lease_id, tenant_id, escalated)
SELECT :batch, 'dedicated', '00000000-0000-0000-0000-000000000000', tenant_id, lines FROM counted
ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET escalated = t.escalated + excluded.escalated
""")


def escalate(connection: Connection, moves: Sequence[Move]) -> int:
    """Move waiting lines to dedicated; return how many."""
    moved = 0
    for move in moves:
        left = move.lines
        for ready in (True, False):
            parameters = {"batch": move.batch, "lines": left, "ready": ready}
            for row in connection.execute(_ESCALATE, parameters) if left > 0 else ():
                left -= row.lines
        moved += move.lines - left
    return moved


def give_back(connection: Connection, moves: Sequence[Move], reason: str) -> int:
    """Move lines that wait for dedicated back to spot; return how many."""
    moved = 0
    for move in moves:
        parameters = {"batch": move.batch, "lines": move.lines, "reason": reason}
        for row in connection.execute(_GIVE_BACK, parameters):
            moved += row.lines
    return moved


def revoke(connection: Connection, moves: Sequence[Move]) -> tuple[int, list[BatchId]]:
    """Take lines out of the hands of spot workers, as interruptions, for dedicated.

    Their workers' results are refused from now on. Returns how many, and the batches that are ending,
    which this may have drained.
    """
    rows = [
        row
        for move in moves
        for row in connection.execute(_REVOKE, {"batch": move.batch, "lines": move.lines})
    ]
    ending = requeue(connection, rows)
    by_batch: dict[UUID, list[int]] = {}
    for row in rows:
        by_batch.setdefault(row.batch_id, []).append(row.line)
    for batch, lines in sorted(by_batch.items()):
        connection.execute(_ESCALATE_THESE, {"batch": batch, "lines": lines})
    return len(rows), ending

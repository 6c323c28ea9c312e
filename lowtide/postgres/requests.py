"""Reading a batch's lines and results while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.domain.ids import format_batch_id
from lowtide.domain.outputs import FinishedLine
from lowtide.domain.pools import Pool
from lowtide.domain.requests import RequestState, ResultCursor, ResultPage
from lowtide.domain.statuses import FINAL_STATUSES, BatchStatus, RequestStatus
from lowtide.postgres.audit import note
from lowtide.postgres.bodies import IS_LONG, SHORT_BODY, body_in_pieces
from lowtide.postgres.connections import acting_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Engine

    from lowtide.domain.ids import BatchId, TenantId

PAGE = """
SELECT line, custom_id, status, pool, attempts, interruptions, escalated, queued_at, started_at,
  finished_at, status_code, error_code, error_message
FROM request_states
WHERE batch_id = :batch AND line > :after
  AND (cast(:status AS text) IS NULL OR status = :status)
  AND (cast(:pool AS text) IS NULL OR pool = :pool)
ORDER BY line LIMIT :limit
"""
_PAGE = text(PAGE)
# A transaction that is still open may yet commit results before ones that are visible already. The
# snapshot's xmin is the oldest of those: below it the order is final.
# A page ends early where bodies are long.
RESULTS = f"""
SELECT f.line, r.custom_id, f.status_code, f.request_id, {SHORT_BODY} AS body, f.error_code,
  f.error_message, {IS_LONG} AS is_long,
  cast(cast(f.settled_in AS text) AS bigint) AS settled_in, f.found
FROM (
  SELECT *, count(*) OVER () AS found, sum(octet_length(body)) OVER (
    ORDER BY settled_in, line ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
  FROM (
    SELECT * FROM results
    WHERE batch_id = :batch
      AND (settled_in, line) > (cast(cast(:transaction AS text) AS xid8), cast(:line AS integer))
      AND (:ended OR settled_in < pg_snapshot_xmin(pg_current_snapshot()))
    ORDER BY settled_in, line LIMIT :limit
  ) page
) f
CROSS JOIN LATERAL (
  SELECT custom_id FROM requests WHERE batch_id = f.batch_id AND line = f.line OFFSET 0) r
WHERE f.bytes_before IS NULL OR f.bytes_before < :bytes
ORDER BY f.settled_in, f.line
"""  # noqa: S608
_PAGE_BYTES = 4 << 20
_RESULTS = text(RESULTS)
_STATUS = text("SELECT status FROM batches WHERE id = :batch")


class PostgresRequests:
    """Port RequestCatalog."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self,
        tenant: TenantId,
        batch: BatchId,
        *,
        after: int,
        limit: int,
        status: RequestStatus | None,
        pool: Pool | None,
    ) -> Sequence[RequestState]:
        """Return up to `limit` lines behind line `after`, in input order."""
        parameters = {
            "batch": batch,
            "after": after,
            "limit": limit,
            "status": None if status is None else status.value,
            "pool": None if pool is None else pool.value,
        }
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_PAGE, parameters)
            return [state_of(row) for row in rows]

    def results(
        self, tenant: TenantId, batch: BatchId, cursor: ResultCursor, limit: int, actor: str
    ) -> ResultPage:
        """Return up to `limit` results committed behind `cursor`; the audit log hears of any.

        There are fewer where bodies are long, and long ones are left out.
        """
        with acting_for(self._engine, tenant) as connection:
            # Asked first: a batch that is final now gets no result that the next could miss.
            status = connection.execute(_STATUS, {"batch": batch}).scalar_one()
            ended = BatchStatus(status) in FINAL_STATUSES
            rows = connection.execute(
                _RESULTS,
                {
                    "batch": batch,
                    "transaction": str(cursor.transaction),
                    "line": cursor.line,
                    "ended": ended,
                    "limit": limit,
                    "bytes": _PAGE_BYTES,
                },
            ).all()
            if rows:
                subject = f"{format_batch_id(batch)}: {len(rows)} results"
                note(connection, tenant, actor, "batches.download", [subject])
        if rows:
            cursor = ResultCursor(rows[-1].settled_in, rows[-1].line)
        return ResultPage(
            lines=tuple(FinishedLine(*row[:8]) for row in rows),
            cursor=cursor,
            complete=ended and (not rows or len(rows) == rows[0].found < limit),
        )

    def body(self, tenant: TenantId, batch: BatchId, line: int) -> Iterator[str]:
        """Yield a long body in pieces; raises NotFound."""
        return body_in_pieces(lambda: acting_for(self._engine, tenant), batch, line)


def state_of(row: Any) -> RequestState:
    """Return the request in a row of `request_states`."""
    return RequestState(
        line=row.line,
        custom_id=row.custom_id,
        status=RequestStatus(row.status),
        pool=None if row.pool is None else Pool(row.pool),
        attempts=row.attempts,
        interruptions=row.interruptions,
        escalated=row.escalated,
        queued_at=row.queued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        status_code=row.status_code,
        error_code=row.error_code,
        error_message=row.error_message,
    )

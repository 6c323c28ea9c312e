"""Reading the requests and results of a batch; long answers in pieces."""

from __future__ import annotations

from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from lowtide.batches.model import FINAL_STATUSES, BatchStatus, RequestStatus
from lowtide.batches.results import FinishedLine, RequestState, ResultCursor, ResultPage
from lowtide.core.errors import NotFound
from lowtide.core.ids import format_batch_id, format_request_id
from lowtide.core.pools import Pool
from lowtide.database.connections import acting_for
from lowtide.tenants.audit import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import BatchId, TenantId


LONG_BYTES: Final = 1 << 20
SHORT_BODY: Final = f"CASE WHEN octet_length(body) <= {LONG_BYTES} THEN body END"
"""The body of a row of `results`, NULL where it is long."""
IS_LONG: Final = f"coalesce(octet_length(body) > {LONG_BYTES}, false)"

# In characters. The server unpacks an answer whole and counts its way to each piece anew, so that
# smaller ones would take long.
_PIECE: Final = 2 << 20
_BODY = text("""
SELECT substr(body, cast(:start AS integer), cast(:length AS integer)) FROM results
WHERE batch_id = :batch AND line = :line
""")


def body_in_pieces(
    transaction: Callable[[], AbstractContextManager[Connection]], batch: BatchId, line: int
) -> Iterator[str]:
    """Yield an answer's body; raises NotFound when it is deleted meanwhile."""
    last = False

    def read(start: int) -> str:
        nonlocal last
        piece = _piece(transaction, batch, line, start)
        last = len(piece) < _PIECE
        return piece

    # No frame of a generator holds a piece while its reader takes the time it needs.
    return map(read, takewhile(lambda _: not last, count(1, _PIECE)))


def _piece(
    transaction: Callable[[], AbstractContextManager[Connection]],
    batch: BatchId,
    line: int,
    start: int,
) -> str:
    parameters = {"batch": batch, "line": line, "start": start, "length": _PIECE}
    with transaction() as connection:
        piece: str | None = connection.execute(_BODY, parameters).scalar_one_or_none()
    if piece is None:
        raise NotFound(f"The answer of {format_request_id(batch, line)} is deleted.")
    return piece


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


class RequestStore:
    """Read requests and results."""

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

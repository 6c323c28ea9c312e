"""Reading the requests and results of a batch, long responses in pieces."""

from __future__ import annotations

from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import text

from lowtide.batches.answer_store import answer_files
from lowtide.batches.model import FINAL_STATUSES, BatchStatus, RequestStatus
from lowtide.batches.results import (
    NEVER_RAN,
    FinishedLine,
    RequestState,
    ResultCursor,
)
from lowtide.core.errors import NotFound
from lowtide.core.ids import format_batch_id, format_request_id
from lowtide.core.pools import Pool
from lowtide.database.connections import acting_for
from lowtide.tenants.audit import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection, Engine

    from lowtide.batches.answers import AnswerFiles
    from lowtide.core.ids import BatchId, TenantId


LONG_BYTES: Final = 1 << 20
SHORT_BODY: Final = f"CASE WHEN octet_length(body) <= {LONG_BYTES} THEN body END"
"""SQL for the body of a row of `results`, NULL if it is long."""
IS_LONG: Final = f"coalesce(octet_length(body) > {LONG_BYTES}, false)"

WITH_DATA: Final = """batch_id <> ALL(ARRAY(
    SELECT id FROM batches WHERE data_ended_at IS NOT NULL AND NOT data_deleted))"""
"""SQL that leaves out the rows of batches whose data has ended, but is not deleted yet."""

# In characters. For each piece the server decompresses the whole response and counts characters up
# to the piece, so smaller pieces would be slow.
_PIECE: Final = 2 << 20
_BODY = text("""
SELECT substr(body, cast(:start AS integer), cast(:length AS integer)) FROM results
WHERE batch_id = :batch AND line = :line
""")


def body_in_pieces(
    transaction: Callable[[], AbstractContextManager[Connection]], batch: BatchId, line: int
) -> Iterator[str]:
    """Yield the body of a response in pieces; raises NotFound if it is deleted meanwhile."""
    is_last = False

    def read(start: int) -> str:
        nonlocal is_last
        piece = _read_piece(transaction, batch, line, start)
        is_last = len(piece) < _PIECE
        return piece

    # Unlike a generator's frame, map keeps no reference to a piece while its reader is busy.
    return map(read, takewhile(lambda _: not is_last, count(1, _PIECE)))


def _read_piece(
    transaction: Callable[[], AbstractContextManager[Connection]],
    batch: BatchId,
    line: int,
    start: int,
) -> str:
    parameters = {"batch": batch, "line": line, "start": start, "length": _PIECE}
    with transaction() as connection:
        piece: str | None = connection.execute(_BODY, parameters).scalar_one_or_none()
    if piece is None:
        raise NotFound(f"The response of {format_request_id(batch, line)} has been deleted.")
    return piece


PAGE = """
SELECT line, custom_id, status, dead_lettered, pool, attempts, interruptions, escalated, queued_at, started_at,
  finished_at, status_code, error_code, error_message
FROM request_states
WHERE batch_id = :batch AND line > :after
  AND (cast(:status AS text) IS NULL OR status = :status)
  AND (cast(:dead_lettered AS boolean) IS NULL OR dead_lettered = :dead_lettered)
  AND (cast(:pool AS text) IS NULL OR pool = :pool)
ORDER BY line LIMIT :limit
"""
_PAGE = text(PAGE)
# An open transaction may still commit results that sort before visible ones. The snapshot's xmin is
# the oldest open transaction: below it the order is final.
# A page ends early if bodies are long.
RESULTS = f"""
SELECT f.line, r.custom_id, f.status_code, f.request_id, {SHORT_BODY} AS body, f.error_code,
  f.error_message, {IS_LONG} AS is_long, f.model_revision,
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
FINISHED = """
SELECT line, cast(cast(settled_in AS text) AS bigint) AS settled_in FROM results
WHERE batch_id = :batch
  AND (settled_in, line) > (cast(cast(:transaction AS text) AS xid8), cast(:line AS integer))
ORDER BY results.settled_in, line LIMIT :limit
"""
_FINISHED = text(FINISHED)
_STATUS = text("SELECT status FROM batches WHERE id = :batch")


class ResultRow(NamedTuple):
    """A result and its position."""

    line: FinishedLine
    cursor: ResultCursor


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
        dead_lettered: bool | None,
        pool: Pool | None,
    ) -> Sequence[RequestState]:
        """Return up to `limit` requests after line `after`, in input order."""
        parameters = {
            "batch": batch,
            "after": after,
            "limit": limit,
            "status": None if status is None else status.value,
            "dead_lettered": dead_lettered,
            "pool": None if pool is None else pool.value,
        }
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_PAGE, parameters)
            return [state_of(row) for row in rows]

    def answer_files(self, tenant: TenantId, batch: BatchId) -> AnswerFiles | None:
        """Return the files that hold a batch's answers; None if it is not closed."""
        with acting_for(self._engine, tenant) as connection:
            return answer_files(connection, batch)

    def results(
        self, tenant: TenantId, batch: BatchId, cursor: ResultCursor, limit: int
    ) -> tuple[Sequence[ResultRow], bool]:
        """Return up to `limit` results committed after `cursor`, and whether others follow.

        A page with long bodies has fewer results, and long bodies are omitted.
        """
        with acting_for(self._engine, tenant) as connection:
            # Must be first: a final batch gets no more results that the next query could miss.
            status = connection.execute(_STATUS, {"batch": batch}).scalar_one()
            is_final = BatchStatus(status) in FINAL_STATUSES
            parameters = _cursor_parameters(batch, cursor, limit) | {
                "ended": is_final,
                "bytes": _PAGE_BYTES,
            }
            rows = connection.execute(_RESULTS, parameters).all()
        results = [ResultRow(FinishedLine(*row[:9]), _cursor_of(row)) for row in rows]
        complete = is_final and (not rows or len(rows) == rows[0].found < limit)
        return results, not complete

    def finished(
        self, tenant: TenantId, batch: BatchId, cursor: ResultCursor, limit: int
    ) -> Sequence[ResultCursor]:
        """Return up to `limit` positions of results of a closed batch after `cursor`."""
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_FINISHED, _cursor_parameters(batch, cursor, limit))
            return [_cursor_of(row) for row in rows]

    def note_download(self, tenant: TenantId, batch: BatchId, results: int, actor: str) -> None:
        """Record a download of results in the audit log."""
        with acting_for(self._engine, tenant) as connection:
            subject = f"{format_batch_id(batch)}: {results} results"
            note(connection, tenant, actor, "batches.download", [subject])

    def body(self, tenant: TenantId, batch: BatchId, line: int) -> Iterator[str]:
        """Yield a long body in pieces; raises NotFound."""
        return body_in_pieces(lambda: acting_for(self._engine, tenant), batch, line)


def _cursor_parameters(batch: BatchId, cursor: ResultCursor, limit: int) -> dict[str, object]:
    transaction = str(cursor.transaction)
    return {"batch": batch, "transaction": transaction, "line": cursor.line, "limit": limit}


def _cursor_of(row: Any) -> ResultCursor:
    return ResultCursor(row.settled_in, row.line)


def state_of(row: Any) -> RequestState:
    """Return the request in a row of `request_states`; one that did not run has an error too."""
    status = RequestStatus(row.status)
    code, message = NEVER_RAN.get(status, (row.error_code, row.error_message))
    return RequestState(
        line=row.line,
        custom_id=row.custom_id,
        status=status,
        dead_lettered=row.dead_lettered,
        pool=None if row.pool is None else Pool(row.pool),
        attempts=row.attempts,
        interruptions=row.interruptions,
        escalated=row.escalated,
        queued_at=row.queued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        status_code=row.status_code,
        error_code=code,
        error_message=message,
    )

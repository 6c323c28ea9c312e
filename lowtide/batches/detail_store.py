"""A batch and its requests, for the portal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from lowtide.batches.answer_store import answer_files
from lowtide.batches.model import RequestStatus, data_ended
from lowtide.batches.request_store import body_in_pieces, state_of
from lowtide.batches.store import batch_of, bound_of
from lowtide.batches.views import (
    ERRORS_FROM,
    MAX_ERRORS,
    MAX_NOTES,
    MAX_SHOWN,
    BatchDetails,
    BatchFile,
    LineRecord,
    Note,
    TopError,
)
from lowtide.core.errors import NotFound
from lowtide.core.ids import BatchId, FileId, TenantId, format_batch_id, format_file_id
from lowtide.core.pools import Pool
from lowtide.core.runs import RUN_LINES
from lowtide.files.store import file_of
from lowtide.fleets.placement import BatchPart
from lowtide.objects.names import MARK
from lowtide.planning.reasons import Reason
from lowtide.tenants.audit import note
from lowtide.tenants.sign_in import reading_as

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from lowtide.batches.answers import AnswerFiles
    from lowtide.batches.model import Batch
    from lowtide.batches.results import RequestState
    from lowtide.files.model import StoredFile


BATCH = "SELECT s.*, now() AS at FROM batch_states s WHERE s.id = :batch"
# The kinds are the predicate of the index.
NOTES = """
SELECT kind, pool, line, lines, detail, at, lease_id, reason, bound FROM request_events
WHERE batch_id = :batch
  AND kind IN ('interrupted', 'escalated', 'revoked', 'returned', 'at_risk', 'on_track')
ORDER BY id DESC LIMIT :limit
"""
# The body of an HTTP error states its reason. Encrypted ones are all different: the code must do.
ERRORS = f"""
SELECT code, message, count(*) AS lines, min(line) AS first_line FROM (
  SELECT line, coalesce(error_code, 'http_' || status_code, 'unknown') AS code,
    CASE WHEN starts_with(coalesce(error_message, body), '{MARK}') THEN ''
      ELSE coalesce(error_message, left(body, 300), '') END AS message
  FROM results WHERE batch_id = :batch AND NOT succeeded ORDER BY line LIMIT :most
) f GROUP BY code, message ORDER BY lines DESC, first_line LIMIT :limit
"""  # noqa: S608
_FILES = text("SELECT id, bytes, expires_at FROM files WHERE id = ANY(cast(:ids AS uuid[]))")
_COUNTED_ERRORS = text("SELECT cast(top_errors AS text) FROM batches WHERE id = :batch")
_FILE = text("""
SELECT f.* FROM batches b
JOIN files f ON f.id = CASE :role WHEN 'input' THEN b.input_file_id
  WHEN 'output' THEN b.output_file_id WHEN 'error' THEN b.error_file_id END
WHERE b.id = :batch
""")
_OWNER = text("SELECT tenant_id FROM batches WHERE id = :batch")
_DATA_ENDED = text("SELECT data_ended_at FROM batches WHERE id = :batch")
_TENANT = text("SELECT name FROM tenants WHERE id = :tenant")
_PARTS = text("""
SELECT fleet, model, lines FROM batch_fleets WHERE batch_id = :batch AND lines > 0 ORDER BY fleet
""")
_WORKERS = text("SELECT id, name FROM workers WHERE id = ANY(cast(:ids AS uuid[]))")
# A search by custom_id scans the requests of one batch: an index would cost splits more than these
# scans cost.
_NAMED_HERE = "AND starts_with(found.custom_id, :custom_id)"
_NAMED = """AND starts_with((SELECT custom_id FROM requests r
      WHERE r.batch_id = :batch AND r.line = found.line), :custom_id)"""
# Requests dropped by a cancellation or at the deadline are only in `requests`. Scalar subqueries
# replace NOT EXISTS, which would become joins that read a whole table.
_OF_LINE = f"""batch_id = :batch AND line BETWEEN found.line - {RUN_LINES - 1} AND found.line
        AND lines @> found.line"""
_DROPPED = f"""SELECT line FROM requests AS found
    WHERE batch_id = :batch AND line > :after {{{{here}}}}
      AND EXISTS (SELECT 1 FROM batches WHERE id = :batch AND ({{ended}}))
      AND (SELECT 1 FROM results WHERE batch_id = :batch AND line = found.line) IS NULL
      AND (SELECT true FROM claimed_runs WHERE {_OF_LINE} ORDER BY line DESC LIMIT 1) IS NULL
      AND (SELECT true FROM queued_runs WHERE {_OF_LINE} ORDER BY line DESC LIMIT 1) IS NULL"""  # noqa: S608
# The lines of runs may interleave within their block: the runs of a page, and of the blocks around it.
_IN_RUNS = f"""SELECT line FROM (
    SELECT l.line FROM (
      SELECT lines FROM {{runs}} WHERE batch_id = :batch AND line > :after - {RUN_LINES}
      ORDER BY line {{{{enough}}}}) r
    CROSS JOIN LATERAL lines_in(r.lines) l (line) WHERE l.line > :after) AS found
    WHERE true {{{{named}}}}"""  # noqa: S608
_OF_STATUS = {
    None: "SELECT line FROM requests AS found WHERE batch_id = :batch AND line > :after {here}",
    RequestStatus.QUEUED: _IN_RUNS.format(runs="queued_runs"),
    RequestStatus.RUNNING: _IN_RUNS.format(runs="claimed_runs"),
    RequestStatus.COMPLETED: """SELECT line FROM results AS found
    WHERE batch_id = :batch AND line > :after AND succeeded {named}""",
    RequestStatus.FAILED: """SELECT line FROM results AS found
    WHERE batch_id = :batch AND line > :after AND NOT succeeded {named}""",
    RequestStatus.EXPIRED: _DROPPED.format(ended="status = 'expired' OR expiring"),
    RequestStatus.CANCELLED: _DROPPED.format(ended="status IN ('cancelling', 'cancelled')"),
}
_SEARCH = {"here": _NAMED_HERE, "named": _NAMED, "enough": ""}
_ALL = {"here": "", "named": "", "enough": f"LIMIT cast(:limit AS integer) + {2 * RUN_LINES}"}


def _page(query: str, *, is_search: bool) -> str:
    return f"""
SELECT s.* FROM ({query.format(**(_SEARCH if is_search else _ALL))} ORDER BY line LIMIT :limit) p
CROSS JOIN LATERAL (
  SELECT * FROM request_states WHERE batch_id = :batch AND line = p.line OFFSET 0) s
ORDER BY p.line
"""  # noqa: S608


LINES = {
    (status, is_search): _page(query, is_search=is_search)
    for status, query in _OF_STATUS.items()
    for is_search in (False, True)
}
"""The statement for each status, without and with a custom_id: a scan of the table that holds just
the requests in that status."""
DEAD_LETTERS = {
    is_search: _page(
        """SELECT line FROM results AS found
    WHERE batch_id = :batch AND line > :after AND NOT succeeded AND dead_lettered {named}""",
        is_search=is_search,
    )
    for is_search in (False, True)
}
"""The same for the dead letters among the failed requests."""
LINE = f"""
SELECT s.*, b.input_key, f.request_id, left(f.body, {MAX_SHOWN}) AS body,
  f.status_code IS NOT NULL AS was_answered, coalesce(octet_length(f.body), 0) AS body_bytes, coalesce(f.input_tokens, 0) AS input_tokens,
  coalesce(f.output_tokens, 0) AS output_tokens, coalesce(f.lease_id, c.lease_id) AS lease_id
FROM batches b
CROSS JOIN LATERAL (
  SELECT * FROM request_states WHERE batch_id = b.id AND line = :line OFFSET 0) s
LEFT JOIN LATERAL (
  SELECT * FROM results WHERE batch_id = b.id AND line = :line OFFSET 0) f ON true
LEFT JOIN LATERAL (
  SELECT lease_id FROM claimed_runs
  WHERE batch_id = b.id AND line BETWEEN :line - {RUN_LINES - 1} AND :line AND lines @> cast(:line AS integer)
  OFFSET 0) c ON true
WHERE b.id = :batch
"""  # noqa: S608
LINE_NOTES = """
SELECT kind, pool, line, lines, detail, at, lease_id, reason, bound FROM request_events
WHERE batch_id = :batch AND line = :line ORDER BY id LIMIT 100
"""
_BATCH, _NOTES, _ERRORS = text(BATCH), text(NOTES), text(ERRORS)
_LINE, _LINE_NOTES = text(LINE), text(LINE_NOTES)
_LINES = {key: text(statement) for key, statement in LINES.items()}
_DEAD_LETTERS = {key: text(statement) for key, statement in DEAD_LETTERS.items()}


class BatchDetailStore:
    """Read the details of batches and requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def details(self, scope: TenantId | None, batch: BatchId) -> BatchDetails:
        """Return a batch without its requests; raises NotFound."""
        with reading_as(self._engine, scope) as connection:
            row = connection.execute(_BATCH, {"batch": batch}).one_or_none()
            if row is None:
                raise _not_found(batch)
            record = batch_of(row)
            rows, errors = _history(connection, record)
            tenant_name = None
            if scope is None:
                tenant_name = connection.execute(
                    _TENANT, {"tenant": record.tenant}
                ).scalar_one_or_none()
            return BatchDetails(
                at=row.at,
                batch=record,
                tenant_name=tenant_name,
                notes=_notes(connection, scope, rows),
                errors=tuple(TopError(*error) for error in errors),
                files=_files(connection, record),
                parts=_parts(connection, record),
            )

    def lines(
        self,
        scope: TenantId | None,
        batch: BatchId,
        status: RequestStatus | None,
        custom_id: str = "",
        *,
        dead_lettered: bool = False,
        after: int,
        limit: int,
    ) -> Sequence[RequestState]:
        """Return up to `limit` requests after line `after`, in input order.

        With `dead_lettered`, only dead letters, whatever the status. None are left once the data of
        the batch has ended.
        """
        parameters: dict[str, object] = {"batch": batch, "after": after, "limit": limit}
        if custom_id:
            parameters["custom_id"] = custom_id
        is_search = bool(custom_id)
        statement = _DEAD_LETTERS[is_search] if dead_lettered else _LINES[status, is_search]
        with reading_as(self._engine, scope) as connection:
            if _data_ended_at(connection, batch) is not None:
                return []
            return [state_of(row) for row in connection.execute(statement, parameters)]

    def line(self, scope: TenantId | None, batch: BatchId, line: int) -> LineRecord:
        """Return a request with the beginning of its response; raises NotFound."""
        parameters = {"batch": batch, "line": line}
        with reading_as(self._engine, scope) as connection:
            ended_at = _data_ended_at(connection, batch)
            if ended_at is not None:
                raise data_ended(batch, ended_at)
            row = connection.execute(_LINE, parameters).one_or_none()
            if row is None:
                raise NotFound(f"{format_batch_id(batch)} has no line {line}.", param="line")
            rows = connection.execute(_LINE_NOTES, parameters).all()
            names = _worker_names(connection, scope, [row.lease_id])
            return LineRecord(
                state=state_of(row),
                input_key=row.input_key,
                start=row.start,
                length=row.length,
                request_id=row.request_id,
                was_answered=row.was_answered,
                body=None if row.body is None else row.body.encode("utf-8", "surrogatepass"),
                body_bytes=row.body_bytes,
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                worker=names.get(row.lease_id),
                notes=_notes(connection, scope, rows),
            )

    def body(self, scope: TenantId | None, batch: BatchId, line: int) -> Iterator[str]:
        """Yield the response to a request in pieces; raises NotFound."""
        return body_in_pieces(lambda: reading_as(self._engine, scope), batch, line)

    def tenant(self, scope: TenantId | None, batch: BatchId) -> TenantId:
        """Return the tenant of a batch; raises NotFound."""
        with reading_as(self._engine, scope) as connection:
            tenant = connection.execute(_OWNER, {"batch": batch}).scalar_one_or_none()
        if tenant is None:
            raise _not_found(batch)
        return TenantId(tenant)

    def answer_files(self, scope: TenantId | None, batch: BatchId) -> AnswerFiles | None:
        """Return the files that hold a batch's answers; None if it is not closed."""
        with reading_as(self._engine, scope) as connection:
            return answer_files(connection, batch)

    def file(self, scope: TenantId | None, batch: BatchId, role: str, actor: str) -> StoredFile:
        """Return a file, and record its download in the audit log; raises NotFound."""
        with reading_as(self._engine, scope) as connection:
            row = connection.execute(_FILE, {"batch": batch, "role": role}).one_or_none()
            if row is None:
                raise NotFound(f"{format_batch_id(batch)} has no {role} file.", param="file")
            subject = f"{format_batch_id(batch)}: {role} {format_file_id(FileId(row.id))}"
            note(connection, TenantId(row.tenant_id), actor, "files.download", [subject])
            return file_of(row)


def _data_ended_at(connection: Connection, batch: BatchId) -> datetime | None:
    at: datetime | None = connection.execute(_DATA_ENDED, {"batch": batch}).scalar_one_or_none()
    return at


def _parts(connection: Connection, batch: Batch) -> tuple[BatchPart, ...]:
    if batch.fleet is not None:
        return ()
    rows = connection.execute(_PARTS, {"batch": batch.id})
    return tuple(BatchPart(row.fleet, row.lines, row.model) for row in rows)


def _history(connection: Connection, batch: Batch) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the events and the errors of a batch that still has data."""
    if batch.data_ended_at is not None:
        return [], []
    notes = connection.execute(_NOTES, {"batch": batch.id, "limit": MAX_NOTES}).all()
    return notes, _top_errors(connection, batch.id) if batch.failed else []


def _top_errors(connection: Connection, batch: BatchId) -> Sequence[Sequence[Any]]:
    """Return the most frequent errors: counted at the end of the batch, or else now."""
    counted = connection.execute(_COUNTED_ERRORS, {"batch": batch}).scalar_one_or_none()
    if counted is not None:
        errors: list[list[Any]] = msgspec.json.decode(counted)
        return errors
    parameters = {"batch": batch, "most": ERRORS_FROM, "limit": MAX_ERRORS}
    return connection.execute(_ERRORS, parameters).all()


def _not_found(batch: BatchId) -> NotFound:
    return NotFound(f"Batch {format_batch_id(batch)} not found.", param="batch_id")


def _notes(connection: Connection, scope: TenantId | None, rows: Sequence[Any]) -> tuple[Note, ...]:
    names = _worker_names(connection, scope, [row.lease_id for row in rows])
    return tuple(
        Note(
            kind=row.kind,
            pool=Pool(row.pool),
            line=row.line,
            lines=row.lines,
            detail=row.detail,
            at=row.at,
            worker=names.get(row.lease_id),
            reason=None if row.reason is None else Reason(row.reason),
            bound=bound_of(row.bound),
        )
        for row in rows
    )


def _worker_names(
    connection: Connection, scope: TenantId | None, leases: Sequence[UUID | None]
) -> dict[UUID | None, str]:
    """Return labels of workers: their names for an operator, lease ids for a tenant."""
    names: dict[UUID | None, str] = {
        lease: f"worker {lease.hex[-8:]}" for lease in leases if lease is not None
    }
    if scope is None and names:
        rows = connection.execute(_WORKERS, {"ids": list(names)})
        names.update({row.id: row.name for row in rows})
    return names


def _files(connection: Connection, batch: Batch) -> tuple[BatchFile, ...]:
    files = (
        ("input", batch.input_file),
        ("output", batch.output_file),
        ("error", batch.error_file),
    )
    ids = {role: file for role, file in files if file is not None}
    rows = connection.execute(_FILES, {"ids": list(ids.values())})
    found = {row.id: (row.bytes, row.expires_at) for row in rows}
    return tuple(
        BatchFile(role, file, *found.get(file, (None, None))) for role, file in ids.items()
    )

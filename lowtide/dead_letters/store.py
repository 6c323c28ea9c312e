"""Reading dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import text

from lowtide.batches.answer_store import answer_files
from lowtide.batches.model import data_ended
from lowtide.batches.request_store import IS_LONG, SHORT_BODY, WITH_DATA, body_in_pieces
from lowtide.batches.results import FinishedLine
from lowtide.core.errors import NotFound
from lowtide.core.ids import BatchId, TenantId, format_request_id
from lowtide.database.connections import acting_for
from lowtide.dead_letters.model import (
    MAX_GROUPED,
    MAX_GROUPS,
    MESSAGE_LENGTH,
    DeadLetter,
    ErrorGroup,
    LetterId,
    LetterLocation,
    LetterState,
    LetterSummary,
    Source,
)
from lowtide.objects.names import MARK
from lowtide.tenants.audit import note
from lowtide.tenants.sign_in import reading_as

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.batches.answers import AnswerFiles
    from lowtide.dead_letters.model import LetterFilter


_FILTERS = f"""(cast(:batch AS uuid) IS NULL OR batch_id = :batch)
    AND (cast(:error_code AS text) IS NULL OR error_code = :error_code)
    AND (cast(:error_message AS text) IS NULL
      OR left(error_message, {MESSAGE_LENGTH}) = :error_message)
    AND (cast(:state AS text) IS NULL OR state = :state)
    AND {WITH_DATA}"""
MATCHES = f"""tenant_id = :tenant
    AND {_FILTERS}"""
"""The condition of a filter; `matches` returns its parameters."""

_JOINS = """
CROSS JOIN LATERAL (
  SELECT custom_id, start, length, checksum FROM requests
  WHERE batch_id = d.batch_id AND line = d.line OFFSET 0) r
CROSS JOIN LATERAL (
  SELECT status_code, octet_length(body) AS answer_bytes FROM results
  WHERE batch_id = d.batch_id AND line = d.line OFFSET 0) f
"""
_FOLLOWS = """(cast(:at AS timestamptz) IS NULL
      OR (at, batch_id, line) < (:at, cast(:after_batch AS uuid), cast(:after_line AS integer)))"""
_NEWEST_FIRST = "at DESC, batch_id DESC, line DESC"
PAGE = f"""
SELECT d.*, r.custom_id, f.status_code
FROM (
  SELECT * FROM dead_letters WHERE {MATCHES} AND {_FOLLOWS} ORDER BY {_NEWEST_FIRST} LIMIT :limit
) d {_JOINS}
ORDER BY d.at DESC, d.batch_id DESC, d.line DESC
"""  # noqa: S608
# A batch has one tenant; without this, each tenant would search its letters.
_TENANTS = """(
    SELECT id FROM tenants WHERE cast(:batch AS uuid) IS NULL
      OR id = (SELECT tenant_id FROM batches WHERE id = cast(:batch AS uuid)))"""
# Every index starts with the tenant: a page of each tenant is read, and the newest rows of these.
PAGE_OF_ALL = f"""
SELECT d.*, r.custom_id, f.status_code
FROM (
  SELECT l.* FROM {_TENANTS} t CROSS JOIN LATERAL (
    SELECT * FROM dead_letters WHERE tenant_id = t.id AND {_FILTERS} AND {_FOLLOWS}
    ORDER BY {_NEWEST_FIRST} LIMIT :limit) l
  ORDER BY {_NEWEST_FIRST} LIMIT :limit
) d {_JOINS}
ORDER BY d.at DESC, d.batch_id DESC, d.line DESC
"""  # noqa: S608
_PAGE, _PAGE_OF_ALL = text(PAGE), text(PAGE_OF_ALL)
# Encrypted messages are all different: the code must do.
_GROUPED = f"""
SELECT error_code, CASE WHEN NOT starts_with(error_message, '{MARK}')
    THEN left(error_message, {MESSAGE_LENGTH}) END AS error_message, count(*) AS letters,
  sum(count(*)) OVER ()::integer AS total
"""
_LARGEST_FIRST = f"GROUP BY 1, 2 ORDER BY letters DESC, 1, 2 LIMIT {MAX_GROUPS}"
GROUPS = f"""
{_GROUPED}
FROM (
  SELECT error_code, error_message FROM dead_letters
  WHERE {MATCHES} ORDER BY {_NEWEST_FIRST} LIMIT :most
) d {_LARGEST_FIRST}
"""  # noqa: S608
GROUPS_OF_ALL = f"""
{_GROUPED}
FROM (
  SELECT l.* FROM {_TENANTS} t CROSS JOIN LATERAL (
    SELECT error_code, error_message FROM dead_letters
    WHERE tenant_id = t.id AND {_FILTERS} ORDER BY {_NEWEST_FIRST} LIMIT :most) l
  LIMIT :most
) d {_LARGEST_FIRST}
"""  # noqa: S608
_GROUPS, _GROUPS_OF_ALL = text(GROUPS), text(GROUPS_OF_ALL)
GET = f"""
SELECT d.*, r.custom_id, r.start, r.length, r.checksum, f.status_code, f.answer_bytes
FROM dead_letters d {_JOINS}
WHERE (cast(:tenant AS uuid) IS NULL OR d.tenant_id = :tenant)
  AND d.batch_id = :batch AND d.line = :line AND {WITH_DATA}
"""  # noqa: S608
_GET = text(GET)
PLACES = f"""
SELECT d.batch_id, d.line, r.start, r.length, r.checksum, f.answer_bytes
FROM (
  SELECT batch_id, line FROM dead_letters
  WHERE {MATCHES}
    AND (batch_id, line) > (cast(:after_batch AS uuid), cast(:after_line AS integer))
  ORDER BY batch_id, line LIMIT :limit
) d {_JOINS}
ORDER BY d.batch_id, d.line
"""  # noqa: S608
_PLACES = text(PLACES)
_SOURCES = text("""
SELECT id, user_id, input_key, endpoint, completion_window, metadata, output_expires_after, fleet,
  priority, EXISTS (SELECT 1 FROM files WHERE files.id = batches.input_file_id) AS has_input
FROM batches WHERE tenant_id = :tenant AND id = ANY(:batches)
""")
_WITHOUT_INPUT = text(f"""
SELECT id FROM batches
WHERE tenant_id = :tenant AND id IN (SELECT batch_id FROM dead_letters WHERE {MATCHES})
  AND NOT EXISTS (SELECT 1 FROM files WHERE files.id = batches.input_file_id)
ORDER BY id LIMIT 5
""")  # noqa: S608
ANSWERS = f"""
SELECT r.line, r.custom_id, f.status_code, f.request_id, {SHORT_BODY} AS body, f.error_code,
  f.error_message, {IS_LONG} AS is_long, f.model_revision
FROM requests r
CROSS JOIN LATERAL (
  SELECT * FROM results WHERE batch_id = r.batch_id AND line = r.line OFFSET 0) f
WHERE r.tenant_id = :tenant AND r.batch_id = :batch AND r.line = ANY(:lines)
ORDER BY r.line
"""  # noqa: S608
_ANSWERS = text(ANSWERS)
_DATA_ENDED = text("SELECT data_ended_at FROM batches WHERE id = :batch")
_PAGE_OF_PLACES = 1000
_FIRST = LetterId(BatchId(UUID(int=0)), 0)


class DeadLetterStore:
    """Read the dead letters of a tenant, or of all tenants where it is None."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self,
        tenant: TenantId | None,
        letter_filter: LetterFilter,
        *,
        after: LetterId | None,
        limit: int,
    ) -> Sequence[DeadLetter]:
        """Return up to `limit` letters that follow `after`, newest first; raises NotFound."""
        died_at = None if after is None else self._get(tenant, after, "after").at
        batch, line = after or _FIRST
        parameters = matches(tenant, letter_filter) | {
            "at": died_at,
            "after_batch": batch,
            "after_line": line,
            "limit": limit,
        }
        statement = _PAGE_OF_ALL if tenant is None else _PAGE
        with reading_as(self._engine, tenant) as connection:
            return [_letter(row) for row in connection.execute(statement, parameters)]

    def summary(self, tenant: TenantId | None, letter_filter: LetterFilter) -> LetterSummary:
        """Return the number of matching letters and their most frequent errors."""
        parameters = matches(tenant, letter_filter) | {"most": MAX_GROUPED}
        statement = _GROUPS_OF_ALL if tenant is None else _GROUPS
        with reading_as(self._engine, tenant) as connection:
            rows = connection.execute(statement, parameters).all()
        groups = tuple(ErrorGroup(row.error_code, row.error_message, row.letters) for row in rows)
        return LetterSummary(rows[0].total if rows else 0, groups)

    def get(self, tenant: TenantId, letter: LetterId) -> tuple[DeadLetter, LetterLocation]:
        """Return a letter and its position; raises NotFound."""
        row = self._get(tenant, letter, "letter_id")
        return _letter(row), _place(row)

    def sources(self, tenant: TenantId, batches: Sequence[BatchId]) -> dict[BatchId, Source]:
        """Return the batches that letters come from."""
        parameters = {"tenant": tenant, "batches": list(batches)}
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_SOURCES, parameters)
            return {
                BatchId(row.id): Source(
                    batch=BatchId(row.id),
                    user=row.user_id,
                    input_key=row.input_key,
                    has_input=row.has_input,
                    endpoint=row.endpoint,
                    completion_window=row.completion_window,
                    metadata=row.metadata,
                    output_expires_after=row.output_expires_after,
                    fleet=row.fleet,
                    priority=row.priority,
                )
                for row in rows
            }

    def without_input(self, tenant: TenantId, letter_filter: LetterFilter) -> Sequence[BatchId]:
        """Return up to five batches with matching letters whose input file is gone."""
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_WITHOUT_INPUT, matches(tenant, letter_filter)).scalars()
            return [BatchId(row) for row in rows]

    def places(
        self, tenant: TenantId, letter_filter: LetterFilter
    ) -> Iterator[Sequence[LetterLocation]]:
        """Yield pages of matching letters in order of batch and line, one transaction each."""
        batch, line = _FIRST
        while True:
            parameters = matches(tenant, letter_filter) | {
                "after_batch": batch,
                "after_line": line,
                "limit": _PAGE_OF_PLACES,
            }
            with acting_for(self._engine, tenant) as connection:
                page = [_place(row) for row in connection.execute(_PLACES, parameters)]
            if not page:
                return
            yield page
            batch, line = page[-1].batch, page[-1].line

    def answers(
        self, tenant: TenantId, batch: BatchId, lines: Sequence[int]
    ) -> Sequence[FinishedLine]:
        """Return the last responses to requests, in order of line; long bodies are omitted."""
        parameters = {"tenant": tenant, "batch": batch, "lines": list(lines)}
        with acting_for(self._engine, tenant) as connection:
            return [FinishedLine(*row) for row in connection.execute(_ANSWERS, parameters)]

    def answer_files(self, tenant: TenantId, batch: BatchId) -> AnswerFiles | None:
        """Return the files that hold a batch's answers; None if it is not closed."""
        with acting_for(self._engine, tenant) as connection:
            return answer_files(connection, batch)

    def body(self, tenant: TenantId, batch: BatchId, line: int) -> Iterator[str]:
        """Yield a long body in pieces; raises NotFound."""
        return body_in_pieces(lambda: acting_for(self._engine, tenant), batch, line)

    def _get(self, tenant: TenantId | None, letter: LetterId, param: str) -> Any:
        parameters = {"tenant": tenant, "batch": letter.batch, "line": letter.line}
        with reading_as(self._engine, tenant) as connection:
            row = connection.execute(_GET, parameters).one_or_none()
            if row is None:
                raise letter_not_found(connection, letter, param)
        return row

    def note_download(self, tenant: TenantId, actor: str, subject: str) -> None:
        """Record a download in the audit log."""
        with acting_for(self._engine, tenant) as connection:
            note(connection, tenant, actor, "dead_letters.download", [subject])


def matches(tenant: TenantId | None, letter_filter: LetterFilter) -> dict[str, object]:
    """Return the parameters of MATCHES."""
    return {
        "tenant": tenant,
        "batch": letter_filter.batch,
        "error_code": letter_filter.error_code,
        "error_message": letter_filter.error_message,
        "state": None if letter_filter.state is None else letter_filter.state.value,
    }


def letter_not_found(connection: Connection, letter: LetterId, param: str) -> NotFound:
    """Return the error for an id that is no dead letter of this tenant, or not any more."""
    ended_at = connection.execute(_DATA_ENDED, {"batch": letter.batch}).scalar_one_or_none()
    if ended_at is not None:
        return data_ended(letter.batch, ended_at)
    return NotFound(
        f"Dead letter {format_request_id(*letter)!r} not found: check the id.", param=param
    )


def _letter(row: Any) -> DeadLetter:
    return DeadLetter(
        tenant=TenantId(row.tenant_id),
        batch=BatchId(row.batch_id),
        line=row.line,
        custom_id=row.custom_id,
        attempts=row.attempts,
        status_code=row.status_code,
        error_code=row.error_code,
        error_message=row.error_message,
        died_at=row.at,
        state=LetterState(row.state),
        ended_at=row.ended_at,
        actor=row.actor,
        requeued_as=None if row.requeued_as is None else BatchId(row.requeued_as),
    )


def _place(row: Any) -> LetterLocation:
    return LetterLocation(
        BatchId(row.batch_id), row.line, row.start, row.length, row.checksum, row.answer_bytes or 0
    )

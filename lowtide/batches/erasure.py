"""Erasing what tables hold of closed batches and deleted files, in bounded sets."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from lowtide.batches.detail_store import ERRORS
from lowtide.batches.views import ERRORS_FROM, MAX_ERRORS
from lowtide.core.ids import BatchId
from lowtide.database.connections import begin

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


# Deletions first: someone waits for them. The custom_ids of an active batch are needed for its
# files, and those that wait for the search's index would be copied there.
NEXT = """
SELECT e.batch_id, e.tenant_id, e.part, e.after_line,
  (SELECT max(line) FROM requests WHERE batch_id = e.batch_id) AS last_line
FROM erasures e
WHERE e.due_at <= now() AND (e.part <> 'input'
  OR (SELECT 1 FROM search_backlog WHERE batch_id = e.batch_id LIMIT 1) IS NULL
    AND (SELECT status FROM batches WHERE id = e.batch_id)
      IN ('completed', 'failed', 'expired', 'cancelled'))
ORDER BY e.part = 'bodies', e.due_at LIMIT 1 FOR UPDATE OF e SKIP LOCKED
"""
_NEXT = text(NEXT)
_ADVANCE = text("""
UPDATE erasures SET after_line = :upto WHERE batch_id = :batch AND part = :part
""")
_DONE = text("DELETE FROM erasures WHERE batch_id = :batch AND part = :part")
_LINES = "batch_id = :batch AND line > :after AND line <= :upto"
_DETAILS = f"""
UPDATE request_events SET detail = '' WHERE {_LINES} AND detail <> ''
"""  # noqa: S608
SETS: Final = {
    "bodies": (
        f"UPDATE results SET body = NULL WHERE {_LINES} AND body IS NOT NULL",  # noqa: S608
    ),
    "output": (
        f"UPDATE results SET body = NULL WHERE {_LINES} AND succeeded AND body IS NOT NULL",  # noqa: S608
        _DETAILS,
    ),
    "error": (
        f"""
UPDATE results SET body = NULL, error_message = NULL
WHERE {_LINES} AND NOT succeeded AND (body IS NOT NULL OR error_message IS NOT NULL)
""",  # noqa: S608
        f"""
UPDATE dead_letters SET error_message = NULL WHERE {_LINES} AND error_message IS NOT NULL
""",  # noqa: S608
        _DETAILS,
    ),
    # The index of custom_ids starts with the tenant. A row's ctid is unique in a partition only.
    "input": (
        f"""
DELETE FROM custom_ids WHERE batch_id = :batch AND ctid = ANY(ARRAY(
  SELECT c.ctid FROM requests r CROSS JOIN LATERAL (
    SELECT ctid FROM custom_ids WHERE tenant_id = r.tenant_id AND custom_id = r.custom_id
      AND batch_id = r.batch_id OFFSET 0) c
  WHERE r.{_LINES.replace(" line", " r.line")}))
""",  # noqa: S608
        f"UPDATE requests SET custom_id = '' WHERE {_LINES} AND custom_id <> ''",  # noqa: S608
    ),
}
"""The statements that erase each part of a set of requests."""
_SETS = {part: [text(statement) for statement in SETS[part]] for part in SETS}
_FIRST = {
    "bodies": [
        text(f"""
UPDATE batches SET top_errors = (
  SELECT jsonb_agg(jsonb_build_array(code, message, lines, first_line)) FROM ({ERRORS}) e)
WHERE id = :batch AND failed > 0 AND top_errors IS NULL
  AND NOT EXISTS (SELECT 1 FROM erasures WHERE batch_id = :batch AND part = 'error')
  AND error_file_id IS NOT NULL
""")  # noqa: S608
    ],
    "error": [text("UPDATE batches SET top_errors = NULL WHERE id = :batch")],
    # A duplicate is named in the message.
    "input": [
        text("""
UPDATE batches SET errors = (
  SELECT jsonb_agg(CASE WHEN e ->> 'code' = 'duplicate_custom_id' THEN
      e || '{"message": "The custom_id is already used on another line: make each one unique."}'
    ELSE e END)
  FROM jsonb_array_elements(errors) e)
WHERE id = :batch AND jsonb_typeof(errors) = 'array'
""")
    ],
}
_UNINDEX = text("""
INSERT INTO orphan_objects (object_key, tenant_id, due_at)
SELECT 'answers/' || replace(cast(s.batch_id AS text), '-', '') || '/'
    || lpad(cast(s.number AS text), 5, '0'), s.tenant_id, now()
FROM segments s
WHERE s.batch_id = :batch AND EXISTS (
  SELECT 1 FROM batches WHERE id = :batch AND output_file_id IS NULL AND error_file_id IS NULL)
ON CONFLICT (object_key) DO UPDATE SET due_at = least(orphan_objects.due_at, excluded.due_at)
""")
_SET_SECONDS: Final = 0.05
_FIRST_SET, _SMALLEST_SET, _LARGEST_SET = 500, 100, 5000


class Eraser:
    """Erase sets of requests, one transaction each, resumable after any of them.

    Concurrent calls erase different parts. Sets are sized so that each takes about 50 ms.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lines = _FIRST_SET

    def erase(self, *, seconds: float = math.inf) -> int:
        """Erase due sets until `seconds` pass or none is left; return the number of sets."""
        end = time.monotonic() + seconds
        sets = 0
        while self._step():
            sets += 1
            if time.monotonic() >= end:
                break
        return sets

    def _step(self) -> bool:
        began = time.monotonic()
        with begin(self._engine) as connection:
            row = connection.execute(_NEXT).one_or_none()
            if row is None:
                return False
            self._erase(connection, row)
        taken = max(time.monotonic() - began, 0.001)
        self._lines = max(_SMALLEST_SET, min(_LARGEST_SET, int(self._lines * _SET_SECONDS / taken)))
        return True

    def _erase(self, connection: Connection, row: Any) -> None:
        batch, part, after = BatchId(row.batch_id), row.part, row.after_line
        if after == 0:
            for statement in _FIRST.get(part, ()):
                parameters = {"batch": batch, "most": ERRORS_FROM, "limit": MAX_ERRORS}
                connection.execute(statement, parameters)
            if part in ("output", "error"):
                connection.execute(_UNINDEX, {"batch": batch})
        upto = after + self._lines
        for statement in _SETS[part]:
            connection.execute(statement, {"batch": batch, "after": after, "upto": upto})
        if upto >= (row.last_line or 0):
            connection.execute(_DONE, {"batch": batch, "part": part})
        else:
            connection.execute(_ADVANCE, {"batch": batch, "part": part, "upto": upto})

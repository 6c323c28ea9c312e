"""The files that hold the answers of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from lowtide.batches.answers import AnswerFiles, SegmentFiles
from lowtide.batches.model import FINAL_STATUSES, BatchStatus

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from lowtide.core.ids import BatchId


FILES = """
SELECT b.status, b.zero_retention, o.object_key AS output_key, e.object_key AS error_key,
  b.completed > 0 AND o.id IS NULL AS output_deleted, b.failed > 0 AND e.id IS NULL AS error_deleted,
  (SELECT json_agg(json_build_array(number, first_line, output_bytes, error_bytes)
    ORDER BY number)::text FROM segments WHERE batch_id = b.id AND finalized_at IS NOT NULL) AS segments
FROM batches b
LEFT JOIN files o ON o.id = b.output_file_id
LEFT JOIN files e ON e.id = b.error_file_id
WHERE b.id = :batch
"""
_FILES = text(FILES)
_decode = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode


def answer_files(connection: Connection, batch: BatchId) -> AnswerFiles | None:
    """Return the files of a closed batch; None if it has none yet, or is unknown."""
    row = connection.execute(_FILES, {"batch": batch}).one_or_none()
    if row is None or BatchStatus(row.status) not in FINAL_STATUSES:
        return None
    segments, output_start, error_start = [], 0, 0
    for number, first_line, output_bytes, error_bytes in _decode(row.segments or "[]"):
        segments.append(SegmentFiles(number, first_line, output_start, error_start))
        output_start += output_bytes
        error_start += error_bytes
    flags = {"output": row.output_deleted, "error": row.error_deleted}
    return AnswerFiles(
        batch,
        row.output_key,
        row.error_key,
        tuple(segments),
        tuple(role for role, is_deleted in flags.items() if is_deleted),
        zero_retention=row.zero_retention,
    )

"""Answers that are too long to be read whole: in pieces, of a transaction each."""

from __future__ import annotations

from itertools import count, takewhile
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from lowtide.domain.errors import NotFound
from lowtide.domain.ids import format_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

    from lowtide.domain.ids import BatchId

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

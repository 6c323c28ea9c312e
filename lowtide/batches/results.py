"""Requests and results of a batch: states, cursors, and the lines of output and error files."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from lowtide.batches.model import RequestStatus
from lowtide.core.ids import BatchId, format_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from lowtide.core.pools import Pool


_encode = msgspec.json.Encoder().encode


class FinishedLine(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A finished request; `body` is the engine's unchanged JSON.

    `status_code` is None without a response; `error_code` is then the reason. If `is_long`, the
    body is omitted, to be read in pieces. `model_revision` is that of the engine, if it is known.
    """

    number: int
    custom_id: str
    status_code: int | None = None
    request_id: str = ""
    body: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    is_long: bool = False
    model_revision: str | None = None

    @property
    def succeeded(self) -> bool:
        """True if it belongs in the output file, False if in the error file."""
        return self.status_code is not None and 200 <= self.status_code < 300


NEVER_RAN: Final[dict[RequestStatus, tuple[str, str]]] = {
    RequestStatus.CANCELLED: (
        "batch_cancelled",
        "This request was not executed because the batch was cancelled.",
    ),
    RequestStatus.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
}
"""Error code and message of requests without a result when their batch ended."""


# In JSON these occur only in strings, where ASCII control characters are escaped already.
_SEPARATORS = {0x85: r"\u0085", 0x2028: r"\u2028", 0x2029: r"\u2029"}


def escape_separators(text: str) -> str:
    """Escape U+0085, U+2028 and U+2029 in JSON strings.

    `str.splitlines` and many line readers split at these characters. The parsed JSON is unchanged.
    """
    if "\u2028" in text or "\u2029" in text or "\x85" in text:
        return text.translate(_SEPARATORS)
    return text


def render(batch: BatchId, line: FinishedLine) -> bytes:
    """Render a line of an output or error file, with its newline.

    The body is embedded unchanged except for separators. The request's own id is used if the engine
    returned no request id.
    """
    request_id = format_request_id(batch, line.number)
    if line.status_code is None or line.body is None:
        error = (
            f'{{"code":{_json_text(line.error_code)},"message":{_json_text(line.error_message)}}}'
        )
        head = f'{{"id":"{request_id}","custom_id":{_json_text(line.custom_id)},"response":'
        return encode_escaped(f'{head}null,"error":{error}}}\n')
    return encode_escaped(f"{_before_body(batch, line)}{line.body}{_AFTER_BODY}")


def render_in_pieces(
    batch: BatchId, line: FinishedLine, body: Callable[[int], Iterable[str]]
) -> Iterator[bytes]:
    """Yield the line that `render` returns, in pieces; `body` yields a long body by line."""
    if not line.is_long:
        yield render(batch, line)
        return
    yield encode_escaped(_before_body(batch, line))
    yield from map(encode_escaped, body(line.number))
    yield _AFTER_BODY.encode()


def render_all(
    batch: BatchId, lines: Iterable[FinishedLine], body: Callable[[int], Iterable[str]]
) -> Iterator[bytes]:
    """Yield rendered lines in blocks: short ones joined, a long one in pieces."""
    for is_long, group in groupby(lines, key=attrgetter("is_long")):
        if is_long:
            for line in group:
                yield from render_in_pieces(batch, line, body)
        else:
            yield b"".join(render(batch, line) for line in group)


def _before_body(batch: BatchId, line: FinishedLine) -> str:
    request_id = format_request_id(batch, line.number)
    # The body stays last: its end is found from the end of the line.
    extension = (
        f'"x_lowtide":{{"model_revision":{_json_text(line.model_revision)}}},'
        if line.model_revision
        else ""
    )
    return (
        f'{{"id":"{request_id}","custom_id":{_json_text(line.custom_id)},"response":'
        f'{{"status_code":{line.status_code},"request_id":'
        f'{_json_text(line.request_id or request_id)},{extension}"body":'
    )


def encode_escaped(text: str) -> bytes:
    """Encode JSON as UTF-8, with separators escaped."""
    return escape_separators(text).encode()


_AFTER_BODY: Final = '},"error":null}\n'


def _json_text(value: str | None) -> str:
    return _encode(value).decode()


@dataclass(frozen=True, slots=True)
class RequestState:
    """The current state of a request; `pool` is None for one dropped before it ran."""

    line: int
    custom_id: str
    status: RequestStatus
    dead_lettered: bool
    pool: Pool | None
    attempts: int
    interruptions: int
    escalated: bool
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    status_code: int | None
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True)
class ResultCursor:
    """A position in the commit order of results.

    Reading on from it misses nothing: `transaction` covers only committed results, and results that
    are committed later sort after it.
    """

    transaction: int = 0
    line: int = 0

    def __str__(self) -> str:
        return f"{self.transaction}.{self.line}"


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Results in commit order, with the next cursor; `complete` is True after the last result.

    `blocks` yields their lines, once; if `has_long`, they may need much memory together.
    """

    blocks: Iterator[bytes]
    has_long: bool
    cursor: ResultCursor
    complete: bool


def parse_cursor(text: str) -> ResultCursor | None:
    """Parse a cursor; return None if `text` is not one."""
    transaction, dot, line = text.partition(".")
    if not dot or not all(part.isascii() and part.isdigit() for part in (transaction, line)):
        return None
    if len(transaction) > 19 or len(line) > 9:
        return None
    return ResultCursor(int(transaction), int(line))

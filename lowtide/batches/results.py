"""Requests and results of a batch: their states, cursors, and lines of output and error files."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from lowtide.batches.model import BatchStatus
from lowtide.core.ids import BatchId, format_request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from lowtide.batches.model import RequestStatus
    from lowtide.core.pools import Pool


_encode = msgspec.json.Encoder().encode


class FinishedLine(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One line of a batch that is over; `body` is the engine's JSON, exactly as it came.

    `status_code` is None when no answer ever came; `error_code` then says why. The body of one that
    `is_long` is left out, and read in pieces where it is wanted.
    """

    number: int
    custom_id: str
    status_code: int | None = None
    request_id: str = ""
    body: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    is_long: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether it belongs in the output file rather than in the error file."""
        return self.status_code is not None and 200 <= self.status_code < 300


NEVER_RAN: dict[BatchStatus, tuple[str, str]] = {
    BatchStatus.CANCELLED: (
        "batch_cancelled",
        "This request was not executed because the batch was cancelled.",
    ),
    BatchStatus.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
}
"""Code and message of lines that a batch ended without."""


# In JSON these stand only in strings: it has every control character of ASCII escaped already.
_SEPARATORS = {0x85: r"\u0085", 0x2028: r"\u2028", 0x2029: r"\u2029"}


def escape_separators(text: str) -> str:
    """Return JSON whose strings escape what `str.splitlines` and many readers of lines end one at.

    Those characters are U+0085, U+2028 and U+2029; parsed, the text is the same as before.
    """
    if "\u2028" in text or "\u2029" in text or "\x85" in text:
        return text.translate(_SEPARATORS)
    return text


def render(batch: BatchId, line: FinishedLine) -> bytes:
    """Return the line with its newline; the body is embedded as it is, but for its separators.

    Where the engine named no request, the line's own id stands for it.
    """
    request_id = format_request_id(batch, line.number)
    if line.status_code is None or line.body is None:
        error = f'{{"code":{_text(line.error_code)},"message":{_text(line.error_message)}}}'
        head = f'{{"id":"{request_id}","custom_id":{_text(line.custom_id)},"response":'
        return encode_escaped(f'{head}null,"error":{error}}}\n')
    return encode_escaped(f"{_before_body(batch, line)}{line.body}{_AFTER_BODY}")


def render_in_pieces(
    batch: BatchId, line: FinishedLine, body: Callable[[int], Iterable[str]]
) -> Iterator[bytes]:
    """Yield what `render` returns; `body` returns the pieces of a long answer by line."""
    if not line.is_long:
        yield render(batch, line)
        return
    yield encode_escaped(_before_body(batch, line))
    yield from map(encode_escaped, body(line.number))
    yield _AFTER_BODY.encode()


def render_all(
    batch: BatchId, lines: Iterable[FinishedLine], body: Callable[[int], Iterable[str]]
) -> Iterator[bytes]:
    """Yield lines in blocks: short ones together, a long one in pieces."""
    for is_long, run in groupby(lines, key=attrgetter("is_long")):
        if is_long:
            for line in run:
                yield from render_in_pieces(batch, line, body)
        else:
            yield b"".join(render(batch, line) for line in run)


def _before_body(batch: BatchId, line: FinishedLine) -> str:
    request_id = format_request_id(batch, line.number)
    return (
        f'{{"id":"{request_id}","custom_id":{_text(line.custom_id)},"response":'
        f'{{"status_code":{line.status_code},"request_id":'
        f'{_text(line.request_id or request_id)},"body":'
    )


def encode_escaped(text: str) -> bytes:
    """Return JSON in UTF-8, as `escape_separators` leaves it."""
    return escape_separators(text).encode()


_AFTER_BODY: Final = '},"error":null}\n'


def _text(value: str | None) -> str:
    return _encode(value).decode()


@dataclass(frozen=True, slots=True)
class RequestState:
    """One line as it stands; `pool` is None for a line that was dropped before it ran."""

    line: int
    custom_id: str
    status: RequestStatus
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
    """A place in the order in which results were committed.

    Reading from here on misses nothing: `transaction` only ever covers what is committed, and what
    commits later comes later.
    """

    transaction: int = 0
    line: int = 0

    def __str__(self) -> str:
        return f"{self.transaction}.{self.line}"


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Results in commit order, where to go on, and whether these were the last there will be."""

    lines: tuple[FinishedLine, ...]
    cursor: ResultCursor
    complete: bool


def parse_cursor(text: str) -> ResultCursor | None:
    """Return the cursor behind its text, or None when `text` is not one."""
    transaction, dot, line = text.partition(".")
    if not dot or not all(part.isascii() and part.isdigit() for part in (transaction, line)):
        return None
    if len(transaction) > 19 or len(line) > 9:
        return None
    return ResultCursor(int(transaction), int(line))

"""The index of an input file: an object with a row per request, cut into segments.

Rows are in COPY's text format, so that a split streams the rows of a segment into the database
without parsing them. The index of a valid file depends on its bytes alone: whoever writes it again,
even at the same time, writes the same object.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from lowtide.files.prefixes import WINDOW, places

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from lowtide.files.lines import InputLine
    from lowtide.objects.store import ObjectStore, ObjectWriter


class FileSegment(msgspec.Struct, frozen=True, array_like=True):
    """A run of requests; their rows are the bytes of the index from `start` up to `end`."""

    lines: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SegmentSize:
    """A segment ends with the request that reaches one of these; `max_bytes` are of the file.

    By default it ends where a window of places does: no group of prompts has requests of two.
    """

    max_lines: int = WINDOW
    max_bytes: int = 64 * 1024 * 1024


class IndexRow(NamedTuple):
    """A request of an index: its number, its first byte in the file, its custom_id."""

    number: int
    start: int
    custom_id: str


_ESCAPES: Final = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_UNESCAPES: Final = {r"\\": "\\", r"\t": "\t", r"\n": "\n", r"\r": "\r"}
_DISCARDED: Final = ValueError("The index is discarded.")


def index_key(object_key: str) -> str:
    """Return the key of the index of an object."""
    return f"indexes/{object_key}"


def render_rows(lines: Sequence[InputLine], placed: Sequence[int] | None = None) -> bytes:
    """Return the rows of requests, each with its place in the order by prefix: by default its own.

    A place has as many digits as any other: the positions of rows do not depend on the order.
    """
    if placed is None:
        placed = [line.number for line in lines]
    custom_ids = "".join([line.custom_id for line in lines])
    if not custom_ids.isprintable() or "\\" in custom_ids:
        return "".join([_row(*each) for each in zip(lines, placed, strict=True)]).encode()
    rows = [
        f"{line.number}\t{line.offset}\t{line.length}\t{line.checksum}\t{place:010}\t{line.model}\t{line.custom_id}\n"
        if line.checksum is not None
        else _row(line, place)
        for line, place in zip(lines, placed, strict=True)
    ]
    return "".join(rows).encode()


def read_rows(chunks: Iterable[bytes]) -> Iterator[IndexRow]:
    """Yield the requests of an index."""
    rest = b""
    for chunk in chunks:
        *rows, rest = (rest + chunk).split(b"\n")
        for row in rows:
            number, start, _, _, _, _, custom_id = row.decode().split("\t")
            if "\\" in custom_id:
                custom_id = _unescape(custom_id)
            yield IndexRow(int(number), int(start), custom_id)


def _row(line: InputLine, place: int) -> str:
    custom_id = line.custom_id
    if "\\" in custom_id or not custom_id.isprintable():
        custom_id = custom_id.translate(_ESCAPES)
    checksum = r"\N" if line.checksum is None else line.checksum
    return f"{line.number}\t{line.offset}\t{line.length}\t{checksum}\t{place:010}\t{line.model}\t{custom_id}\n"


def _unescape(text: str) -> str:
    parts = text.split("\\\\")
    for escaped, plain in list(_UNESCAPES.items())[1:]:
        parts = [part.replace(escaped, plain) for part in parts]
    return "\\".join(parts)


class IndexWriter:
    """An index being written; its object exists only after the block ends without an exception.

    Requests are kept until a window of them is complete, as each may get a place before them; the
    object is opened then. A discarded index leaves nothing behind.
    """

    def __init__(self, objects: ObjectStore, key: str, size: SegmentSize | None = None) -> None:
        self._objects = objects
        self._key = key
        self._size = size or SegmentSize()
        self._segments: list[FileSegment] = []
        self._writer: ObjectWriter | None = None
        self._discarded = False
        self._bytes = 0
        self._waiting: list[InputLine] = []
        # The segments that end among the waiting requests: where, and their number of requests.
        self._ends: list[tuple[int, int]] = []
        # Of the segment that is open: requests, the position of its rows, and of its first byte.
        self._lines = 0
        self._row_start = 0
        self._file_start = 0

    @property
    def segments(self) -> tuple[FileSegment, ...]:
        """The segments so far, the open one included."""
        if not self._lines:
            return tuple(self._segments)
        return (*self._segments, FileSegment(self._lines, self._row_start, self._bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                self._write()
            except BaseException as failure:
                self._close(type(failure), failure, failure.__traceback__)
                raise
        self._close(kind, error, trace)

    def add(self, lines: Sequence[InputLine]) -> None:
        """Add the next requests."""
        position = 0
        while position < len(lines) and not self._discarded:
            if not self._lines:
                self._file_start = lines[position].offset
            room = WINDOW - len(self._waiting)
            end = min(self._border(lines, position), position + room)
            self._waiting += lines[position:end]
            self._lines += end - position
            last = lines[end - 1]
            if (
                self._lines >= self._size.max_lines
                or last.offset + last.length - self._file_start >= self._size.max_bytes
            ):
                self._ends.append((len(self._waiting), self._lines))
                self._lines = 0
            if len(self._waiting) == WINDOW:
                self._write()
            position = end

    def discard(self) -> None:
        """Abort the object; more rows are ignored."""
        self._discarded = True
        self._segments.clear()
        self._waiting.clear()
        self._ends.clear()
        self._lines = 0
        self._close(type(_DISCARDED), _DISCARDED, None)

    def _close(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(kind, error, trace)

    def _write(self) -> None:
        """Write the rows of the requests that wait."""
        if not self._waiting:
            return
        if self._writer is None:
            self._writer = self._objects.open_writer(self._key)
            self._writer.__enter__()
        placed = places(self._waiting)
        start = 0
        for end, requests in self._ends:
            self._write_rows(self._writer, placed, start, end)
            self._segments.append(FileSegment(requests, self._row_start, self._bytes))
            self._row_start = self._bytes
            start = end
        self._write_rows(self._writer, placed, start, len(self._waiting))
        self._waiting.clear()
        self._ends.clear()

    def _write_rows(
        self, writer: ObjectWriter, placed: Sequence[int], start: int, end: int
    ) -> None:
        rows = render_rows(self._waiting[start:end], placed[start:end])
        writer.write(rows)
        self._bytes += len(rows)

    def _border(self, lines: Sequence[InputLine], position: int) -> int:
        """Return the end of the requests that still belong to the open segment."""
        end = min(len(lines), position + self._size.max_lines - self._lines)
        full = self._file_start + self._size.max_bytes
        if lines[end - 1].offset + lines[end - 1].length < full:
            return end
        reaches = bisect_left(
            lines, full, position, end, key=lambda line: line.offset + line.length
        )
        return min(reaches + 1, end)

"""The answers of closed batches: lines of their output and error files, read by range.

Each segment of a batch has an index object: 12 bytes for every request, in input order, with the
position and the length of its line in the segment's piece of the output or the error file.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import groupby
from struct import Struct
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import NotFound, Unavailable
from lowtide.core.ids import format_batch_id
from lowtide.objects.names import KeyDestroyed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowtide.core.ids import BatchId
    from lowtide.objects.store import ObjectStore


_ENTRY: Final = Struct("<QI")
_IN_ERROR_FILE: Final = 1 << 63
_LONG_BYTES: Final = 1 << 20
# A custom_id and a request id fit many times.
_HEAD_BYTES: Final = 64 << 10
_TEXT: Final = rb'"(?:[^"\\]|\\.)*"'
_BEFORE_BODY: Final = re.compile(
    rb'\{"id":"\w+","custom_id":' + _TEXT + rb',"response":\{"status_code":\d+,"request_id":'
    rb"" + _TEXT + rb',(?:"x_lowtide":\{"model_revision":' + _TEXT + rb'\},)?"body":'
)
_AFTER_BODY: Final = len('},"error":null}')


class AnswersGone(NotFound):
    """Answers whose file was deleted or has expired."""

    default_code = "answers_deleted"


def index_key(batch: BatchId, segment: int) -> str:
    """Return the key of the index object of a segment."""
    return f"answers/{batch.hex}/{segment:05d}"


def index_entry(offset: int, length: int, *, in_error_file: bool) -> bytes:
    """Return the index entry of a line, whose length has no newline."""
    return _ENTRY.pack(offset | _IN_ERROR_FILE if in_error_file else offset, length)


@dataclass(frozen=True, slots=True)
class AnswerPlace:
    """The position of a request's line in the output or the error file, without its newline."""

    in_error_file: bool
    offset: int
    length: int

    @property
    def is_long(self) -> bool:
        """True if the line is to be read in pieces."""
        return self.length > _LONG_BYTES


@dataclass(frozen=True, slots=True)
class SegmentFiles:
    """A segment with its first line, and the positions of its pieces in both files."""

    number: int
    first_line: int
    output_start: int
    error_start: int


@dataclass(frozen=True, slots=True)
class AnswerFiles:
    """The files of a closed batch; a key is None if there is no such file.

    `deleted` names those that once were. Batches that an earlier version closed have no segments:
    their bodies are in the database. Without a file, the key of zero retention is destroyed.
    """

    batch: BatchId
    output_key: str | None
    error_key: str | None
    segments: tuple[SegmentFiles, ...]
    deleted: tuple[str, ...] = ()
    zero_retention: bool = False

    def require(self) -> None:
        """Raise AnswersGone if a file was deleted, or KeyDestroyed."""
        if self.deleted:
            raise self.gone(self.deleted[0])

    def require_role(self, role: str) -> None:
        """Raise AnswersGone if the `output` or the `error` file was deleted, or KeyDestroyed."""
        if role in self.deleted:
            raise self.gone(role)

    def gone(self, role: str) -> AnswersGone | KeyDestroyed:
        """Return the error for answers in a file that was deleted."""
        if self.zero_retention and self.output_key is None and self.error_key is None:
            return KeyDestroyed()
        return AnswersGone(
            f"The {role} file of {format_batch_id(self.batch)} was deleted or has expired, and with "
            "it these answers.",
            param="batch_id",
        )


class AnswerReader:
    """Read the lines of closed batches. Raises AnswersGone if a file is deleted meanwhile.

    Raises KeyDestroyed if the key of zero retention was destroyed.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def places(self, files: AnswerFiles, lines: Sequence[int]) -> list[AnswerPlace]:
        """Return the places of requests, in the order of `lines`."""
        by_segment: dict[int, list[int]] = {}
        starts = [segment.first_line for segment in files.segments]
        for line in lines:
            by_segment.setdefault(bisect_right(starts, line) - 1, []).append(line)
        found: dict[int, AnswerPlace] = {}
        for number, wanted in by_segment.items():
            found.update(zip(wanted, self._places(files, number, wanted), strict=True))
        return [found[line] for line in lines]

    def _places(
        self, files: AnswerFiles, number: int, lines: Sequence[int]
    ) -> Iterator[AnswerPlace]:
        segment = files.segments[number]
        ranges = [((line - segment.first_line) * _ENTRY.size, _ENTRY.size) for line in lines]
        key = index_key(files.batch, segment.number)
        try:
            entries = self._objects.read_ranges(key, ranges)
        except NotFound as error:
            raise files.gone("output") from error
        for entry in entries:
            if len(entry) != _ENTRY.size:
                raise Unavailable(f"Object {key!r} is truncated.")
            offset, length = _ENTRY.unpack(entry)
            in_error_file = bool(offset & _IN_ERROR_FILE)
            start = segment.error_start if in_error_file else segment.output_start
            yield AnswerPlace(in_error_file, (offset & ~_IN_ERROR_FILE) + start, length)

    def blocks(self, files: AnswerFiles, places: Sequence[AnswerPlace]) -> Iterator[bytes]:
        """Yield the lines at `places`: short ones joined, a long one in pieces."""
        for is_long, group in groupby(places, key=lambda place: place.is_long):
            if is_long:
                for place in group:
                    yield from self._stream(files, place, 0, place.length + 1)
            else:
                yield b"".join(self._lines(files, list(group)))

    def _lines(self, files: AnswerFiles, places: Sequence[AnswerPlace]) -> list[bytes]:
        lines = [b""] * len(places)
        for in_error_file in (False, True):
            numbers = [n for n, place in enumerate(places) if place.in_error_file is in_error_file]
            if not numbers:
                continue
            role, key = _file(files, in_error_file=in_error_file)
            ranges = [(places[n].offset, places[n].length + 1) for n in numbers]
            try:
                texts = self._objects.read_ranges(key, ranges)
            except KeyDestroyed:
                raise
            except NotFound as error:
                raise files.gone(role) from error
            for number, line in zip(numbers, texts, strict=True):
                if len(line) != places[number].length + 1:
                    raise Unavailable(f"Object {key!r} is truncated.")
                lines[number] = line
        return lines

    def body(
        self, files: AnswerFiles, place: AnswerPlace, limit: int | None = None
    ) -> tuple[Iterator[bytes], int] | None:
        """Return the first `limit` bytes of a response's body in pieces, and its whole size.

        None if the request has no response.
        """
        head = b"".join(self._stream(files, place, 0, min(_HEAD_BYTES, place.length)))
        match = _BEFORE_BODY.match(head)
        if match is None:
            return None
        start, end = match.end(), place.length - _AFTER_BODY
        stop = end if limit is None else min(end, start + limit)
        return self._stream(files, place, start, stop), end - start

    def _stream(
        self, files: AnswerFiles, place: AnswerPlace, start: int, end: int
    ) -> Iterator[bytes]:
        role, key = _file(files, in_error_file=place.in_error_file)
        missing = end - start
        try:
            for piece in self._objects.stream(key, place.offset + start, place.offset + end):
                missing -= len(piece)
                yield piece
        except KeyDestroyed:
            raise
        except NotFound as error:
            raise files.gone(role) from error
        if missing:
            raise Unavailable(f"Object {key!r} is truncated.")


def _file(files: AnswerFiles, *, in_error_file: bool) -> tuple[str, str]:
    role, key = ("error", files.error_key) if in_error_file else ("output", files.output_key)
    if key is None:
        raise files.gone(role)
    return role, key

"""The validation of a file in one pass over its bytes, which writes its index."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from lowtide.files.custom_ids import repeated
from lowtide.files.index import IndexRow, IndexWriter, index_key, read_rows
from lowtide.files.lines import LineReader, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import BinaryIO, Self

    from lowtide.files.index import FileSegment, SegmentSize
    from lowtide.files.lines import Problem
    from lowtide.objects.store import ObjectStore

_CHUNK: Final = 1 << 20


def validate_stream(stream: BinaryIO, reader: LineReader) -> None:
    """Check a file that can be read twice, without writing its index; `reader` has the problems."""
    for _ in read_lines(_chunks(stream), reader):
        pass
    suspects = () if reader.problems else reader.suspects
    if suspects:
        stream.seek(0)
        again = LineReader(reader.limits, endpoint=reader.endpoint)
        lines = read_lines(_chunks(stream), again)
        rows = (IndexRow(line.number, line.offset, line.custom_id) for line in lines)
        found = list(islice(repeated(rows, suspects), reader.limits.max_problems))
        stream.seek(0)
        reader.report_repeated(found, _chunks(stream))


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: stream.read(_CHUNK), b"")


class Validation:
    """A validation in progress.

    After the block, a file without problems has an index; `finish` must have been called in it. Any
    other file has none.
    """

    def __init__(
        self,
        objects: ObjectStore,
        object_key: str,
        reader: LineReader,
        size: SegmentSize | None = None,
    ) -> None:
        self.reader = reader
        self._objects = objects
        self._object_key = object_key
        self._index = IndexWriter(objects, index_key(object_key), size)

    @property
    def problems(self) -> Sequence[Problem]:
        """The problems so far."""
        return self.reader.problems

    @property
    def segments(self) -> tuple[FileSegment, ...]:
        """The segments of the index; none if there are problems."""
        return self._index.segments

    def __enter__(self) -> Self:
        self._index.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._index.__exit__(kind, error, trace)

    def feed(self, chunk: bytes) -> None:
        """Check the next bytes."""
        lines = self.reader.feed(chunk)
        if self.problems:
            self._index.discard()
        else:
            self._index.add(lines)

    def finish(self) -> None:
        """Check the end of the file."""
        lines = self.reader.finish()
        if self.problems:
            self._index.discard()
        else:
            self._index.add(lines)

    def find_repeated(self) -> None:
        """Report custom_ids that repeat in a large file, after the block; its object must exist."""
        suspects = () if self.problems else self.reader.suspects
        if not suspects:
            return
        rows = read_rows(self._objects.stream(index_key(self._object_key)))
        self.reader.report_repeated(
            repeated(rows, suspects), self._objects.stream(self._object_key)
        )
        if self.problems:
            self._index.discard()
            self._objects.delete([index_key(self._object_key)])

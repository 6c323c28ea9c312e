"""The validation of a file in one pass over its bytes, which writes its index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.files.custom_ids import repeated
from lowtide.files.index import IndexWriter, index_key, read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from lowtide.files.index import FileSegment, SegmentSize
    from lowtide.files.lines import LineReader, Problem
    from lowtide.objects.store import ObjectStore


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

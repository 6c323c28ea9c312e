"""Indexes: segments cut a file's requests, and join to exactly them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.errors import NotFound
from lowtide.files.index import IndexWriter, SegmentSize, index_key, read_rows, render_rows
from lowtide.files.lines import InputLine, LineReader
from lowtide.files.validation import Validation
from lowtide.objects.store import ObstoreObjects
from tests.http.forms import line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.files.index import FileSegment

KEY = "files/x"


def _validated(
    content: bytes, chunks: Sequence[int], size: SegmentSize
) -> tuple[ObstoreObjects, tuple[FileSegment, ...], LineReader]:
    objects, reader = ObstoreObjects("memory://"), LineReader()
    with Validation(objects, KEY, reader, size) as validation:
        start = 0
        for length in [*chunks, len(content)]:
            validation.feed(content[start : start + length])
            start += length
        validation.finish()
    return objects, validation.segments, reader


@given(
    st.lists(st.tuples(st.text(max_size=20), st.integers(0, 200), st.booleans()), min_size=1),
    st.lists(st.integers(0, 500)),
    st.integers(1, 12),
    st.integers(1, 3000),
)
def test_segments_join_to_exactly_the_requests_of_the_file(
    drawn: list[tuple[str, int, bool]], chunks: list[int], max_lines: int, max_bytes: int
) -> None:
    content = b"".join(
        line(f"{number}{text}".replace("\x00", ""), pad="x" * padding) + b"\n" * blank
        for number, (text, padding, blank) in enumerate(drawn)
    )
    size = SegmentSize(max_lines, max_bytes)
    objects, segments, reader = _validated(content, chunks, size)
    assert reader.problems == []
    whole = LineReader()
    expected = whole.feed(content) + whole.finish()
    rows = b"".join(objects.stream(index_key(KEY)))
    assert rows == render_rows(expected)
    assert [row.custom_id for row in read_rows([rows])] == [each.custom_id for each in expected]
    assert [segment.start for segment in segments] == [0, *(each.end for each in segments[:-1])]
    assert segments[-1].end == len(rows)
    position = 0
    for number, segment in enumerate(segments, 1):
        requests = expected[position : position + segment.lines]
        assert rows[segment.start : segment.end] == render_rows(requests)
        assert 0 < len(requests) <= max_lines
        start = requests[0].offset
        sizes = [each.offset + each.length - start for each in requests]
        assert all(each < max_bytes for each in sizes[:-1])
        if number < len(segments):
            assert len(requests) == max_lines or sizes[-1] >= max_bytes
        position += segment.lines
    assert position == len(expected)


def test_index_does_not_depend_on_the_size_of_segments_or_chunks() -> None:
    content = b"".join(line(str(number)) for number in range(500))
    indexes = set()
    for chunks, size in (
        ([], SegmentSize()),
        ([7] * 900, SegmentSize(3)),
        ([1000], SegmentSize(9, 99)),
    ):
        objects, _, _ = _validated(content, chunks, size)
        indexes.add(b"".join(objects.stream(index_key(KEY))))
    assert len(indexes) == 1


@pytest.mark.parametrize("bad", [0, 30, 99])
def test_file_with_problems_has_no_index(bad: int) -> None:
    lines = [line(str(number)) for number in range(100)]
    lines[bad] = b"[]\n"
    objects, segments, _ = _validated(b"".join(lines), [2000] * 5, SegmentSize(4))
    assert segments == ()
    with pytest.raises(NotFound):
        list(objects.stream(index_key(KEY)))


def test_interrupted_index_leaves_nothing() -> None:
    objects = ObstoreObjects("memory://")

    def interrupt() -> None:
        with IndexWriter(objects, KEY) as index:
            index.add([InputLine(1, "a", 0, 9, 1)])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupt()
    with pytest.raises(NotFound):
        list(objects.stream(KEY))

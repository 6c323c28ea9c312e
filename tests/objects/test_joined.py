"""Joined objects behave as one object of the same bytes, in a folder and on S3."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.errors import NotFound
from lowtide.objects.joined import JoinedObjects, Piece, joined_key
from lowtide.objects.store import ObstoreObjects

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = joined_key("whole")


def joined(pieces: Sequence[bytes]) -> JoinedObjects:
    objects = JoinedObjects(ObstoreObjects("memory:///"))
    for number, data in enumerate(pieces):
        with objects.open_writer(f"piece/{number}") as writer:
            writer.write(data)
    objects.join(KEY, [Piece(f"piece/{number}", len(data)) for number, data in enumerate(pieces)])
    return objects


@given(
    st.lists(st.binary(max_size=9), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5),
)
def test_ranges_are_those_of_the_bytes_in_a_row(
    pieces: list[bytes], ranges: list[tuple[int, int]]
) -> None:
    objects, whole = joined(pieces), b"".join(pieces)
    expected = [whole[start : start + length] for start, length in ranges]
    assert list(objects.read_ranges(KEY, ranges)) == expected
    assert list(asyncio.run(objects.fetch_ranges(KEY, ranges))) == expected
    for start, length in ranges:
        assert b"".join(objects.stream(KEY, start, start + length)) == whole[start : start + length]
    assert b"".join(objects.stream(KEY)) == whole


def test_deletion_takes_the_pieces_and_can_be_repeated() -> None:
    objects = joined([b"one", b"two"])
    objects.delete(["unknown", KEY])
    objects.delete([KEY])
    for key in (KEY, "piece/0", "piece/1"):
        with pytest.raises(NotFound):
            b"".join(objects.stream(key))


def test_an_interrupted_deletion_can_be_repeated() -> None:
    objects = joined([b"one", b"two"])
    objects.delete(["piece/0"])
    objects.delete([KEY])
    with pytest.raises(NotFound):
        b"".join(objects.stream("piece/1"))


def test_plain_objects_stay_plain() -> None:
    objects = joined([b"one"])
    assert list(objects.read_ranges("piece/0", [(1, 9)])) == [b"ne"]
    assert list(asyncio.run(objects.fetch_ranges("piece/0", [(0, 2)]))) == [b"on"]
    assert b"".join(objects.stream("piece/0", 1)) == b"ne"

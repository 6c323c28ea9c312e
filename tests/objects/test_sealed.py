"""Encrypted objects behave as plain ones of the same bytes; any change to them is noticed."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lowtide.core.errors import NotFound
from lowtide.core.ids import TenantId
from lowtide.objects.joined import JoinedObjects, Piece, joined_key
from lowtide.objects.names import Damaged, DataKeyId, KeyDestroyed, data_key_of, sealed_key
from lowtide.objects.sealed import SealedObjects
from lowtide.objects.sealing import (
    HEADER,
    SEALED_SEGMENT,
    SEGMENT,
    open_text,
    seal_text,
    text_size,
)
from lowtide.objects.store import ObstoreObjects

if TYPE_CHECKING:
    from collections.abc import Sequence

ID = DataKeyId(TenantId(UUID(int=1)), UUID(int=2))
KEY = sealed_key(ID, "files/1")
OTHER = sealed_key(ID, "files/2")
BYTES = random.Random(1).randbytes(4 * SEGMENT)  # noqa: S311
# Around the borders of segments, where mistakes are.
SIZES = st.one_of(
    st.integers(0, 3 * SEGMENT + 5),
    st.builds(lambda n, d: max(0, n * SEGMENT + d), st.integers(0, 3), st.integers(-2, 2)),
)


def sealed(store: ObstoreObjects | None = None, data_key: bytes = b"k" * 32) -> SealedObjects:
    return SealedObjects(store or ObstoreObjects("memory:///"), lambda _: data_key)


def put(objects: SealedObjects | ObstoreObjects, data: bytes, key: str = KEY) -> None:
    with objects.open_writer(key) as writer:
        for start in range(0, len(data), 50_000):
            writer.write(data[start : start + 50_000])


def read(objects: SealedObjects | ObstoreObjects, key: str = KEY) -> bytes:
    return b"".join(objects.stream(key))


@given(SIZES, st.lists(st.tuples(SIZES, SIZES), max_size=5))
@example(SEGMENT, [(0, SEGMENT), (SEGMENT, 1), (2 * SEGMENT, 1), (SEGMENT - 1, 2)])
@example(2 * SEGMENT, [(SEGMENT, SEGMENT), (3 * SEGMENT, 9), (0, 0)])
@example(0, [(0, 1), (SEGMENT, 1)])
def test_ranges_and_streams_are_those_of_the_plain_bytes(
    size: int, ranges: list[tuple[int, int]]
) -> None:
    data, objects = BYTES[:size], sealed()
    put(objects, data)
    expected = [data[start : start + length] for start, length in ranges]
    assert list(objects.read_ranges(KEY, ranges)) == expected
    assert list(asyncio.run(objects.fetch_ranges(KEY, ranges))) == expected
    for start, length in ranges:
        assert b"".join(objects.stream(KEY, start, start + length)) == data[start : start + length]
        assert b"".join(objects.stream(KEY, start)) == data[start:]


def test_the_store_holds_no_plain_bytes() -> None:
    store = ObstoreObjects("memory:///")
    put(sealed(store), b"a marker in the text " * 10_000)
    assert b"marker" not in read(store)
    assert len(read(store)) == HEADER + 210_000 + 4 * 16


def test_a_range_reads_only_its_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObstoreObjects("memory:///")
    put(sealed(store), BYTES)
    asked: list[Sequence[tuple[int, int]]] = []
    original = store.read_ranges

    def noting(key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        asked.append(ranges)
        return original(key, ranges)

    monkeypatch.setattr(store, "read_ranges", noting)
    sealed(store).read_ranges(KEY, [(2 * SEGMENT + 7, 9)])
    assert asked == [[(0, HEADER), (HEADER + 2 * SEALED_SEGMENT, SEALED_SEGMENT)]]


def flip(data: bytes) -> bytes:
    at = HEADER + SEALED_SEGMENT + 5
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def reorder(data: bytes) -> bytes:
    first, second = HEADER, HEADER + SEALED_SEGMENT
    third = second + SEALED_SEGMENT
    return data[:first] + data[second:third] + data[first:second] + data[third:]


CHANGES = {
    "flipped": flip,
    "reordered": reorder,
    "cut in a segment": lambda data: data[:-1],
    "cut at a segment": lambda data: data[: HEADER + 2 * SEALED_SEGMENT],
    "cut after the header": lambda data: data[:HEADER],
    "cut in the header": lambda data: data[:9],
    "emptied": lambda _: b"",
    "longer": lambda data: data + b"x",
    "a segment repeated": lambda data: data + data[-SEALED_SEGMENT:],
    "salt changed": lambda data: data[:5] + b"0123456789" + data[15:],
    "version changed": lambda data: b"LTS2" + data[4:],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("size", [3 * SEGMENT, 3 * SEGMENT - 9], ids=["whole", "short"])
def test_changed_bytes_are_refused(change: object, size: int) -> None:
    store = ObstoreObjects("memory:///")
    objects = sealed(store)
    put(objects, BYTES[:size])
    assert callable(change)
    put(store, change(read(store)))
    with pytest.raises(Damaged):
        read(objects)
    # All ranges together touch every byte.
    ranges = [(start, SEGMENT) for start in range(0, size + 1, SEGMENT)]
    with pytest.raises(Damaged):
        objects.read_ranges(KEY, ranges)
    with pytest.raises(Damaged):
        asyncio.run(objects.fetch_ranges(KEY, ranges))


def test_a_cut_object_is_refused_beyond_its_end() -> None:
    store = ObstoreObjects("memory:///")
    objects = sealed(store)
    put(objects, BYTES)
    put(store, read(store)[: HEADER + 2 * SEALED_SEGMENT])
    with pytest.raises(Damaged):
        objects.read_ranges(KEY, [(3 * SEGMENT, 5)])
    with pytest.raises(Damaged):
        list(objects.stream(KEY, 3 * SEGMENT, 3 * SEGMENT + 5))


def test_an_object_under_another_name_is_refused() -> None:
    store = ObstoreObjects("memory:///")
    objects = sealed(store)
    put(objects, b"one")
    put(objects, b"two", OTHER)
    put(store, read(store, OTHER))
    with pytest.raises(Damaged):
        read(objects)


def test_another_data_key_is_refused() -> None:
    store = ObstoreObjects("memory:///")
    put(sealed(store), b"one")
    with pytest.raises(Damaged):
        read(sealed(store, b"K" * 32))


def test_the_same_bytes_are_never_encrypted_alike() -> None:
    store = ObstoreObjects("memory:///")
    objects = sealed(store)
    put(objects, b"one")
    first = read(store)
    put(objects, b"one")
    assert read(store)[HEADER:] != first[HEADER:]


def test_an_exception_leaves_no_object() -> None:
    objects = sealed()

    def work() -> None:
        with objects.open_writer(KEY) as writer:
            writer.write(BYTES)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    with pytest.raises(NotFound):
        read(objects)


def test_objects_with_other_keys_stay_plain() -> None:
    store = ObstoreObjects("memory:///")
    put(sealed(store), b"one", "files/1")
    assert read(store, "files/1") == b"one"
    assert list(sealed(store).read_ranges("files/1", [(1, 2)])) == [b"ne"]


def test_a_joined_object_of_encrypted_pieces_is_read_as_one() -> None:
    def key_of(_: DataKeyId) -> bytes:
        return b"k" * 32

    objects = JoinedObjects(SealedObjects(ObstoreObjects("memory:///"), key_of))
    pieces = [BYTES[: SEGMENT + 1], BYTES[SEGMENT + 1 :]]
    for number, data in enumerate(pieces):
        with objects.open_writer(sealed_key(ID, f"files/1/{number}")) as writer:
            writer.write(data)
    whole = joined_key(sealed_key(ID, "files/1"))
    objects.join(
        whole, [Piece(sealed_key(ID, f"files/1/{n}"), len(p)) for n, p in enumerate(pieces)]
    )
    assert b"".join(objects.stream(whole)) == BYTES
    assert list(objects.read_ranges(whole, [(SEGMENT, 2)])) == [BYTES[SEGMENT : SEGMENT + 2]]
    assert data_key_of(whole) == ID
    objects.delete([whole])
    with pytest.raises(NotFound):
        b"".join(objects.stream(sealed_key(ID, "files/1/0")))


def test_without_its_key_an_object_says_why_it_cannot_be_read() -> None:
    def destroyed(_: DataKeyId) -> bytes:
        raise KeyDestroyed

    store = ObstoreObjects("memory:///")
    put(sealed(store), b"one")
    with pytest.raises(KeyDestroyed, match="zero retention"):
        read(SealedObjects(store, destroyed))


@pytest.mark.parametrize("key", ["files/1", "sealed/1/2/files/1", "x/" + KEY, "joined/1"], ids=str)
def test_other_keys_name_no_data_key(key: str) -> None:
    assert data_key_of(key) is None
    assert data_key_of(KEY) == ID


@given(st.text(max_size=80), st.integers(1, 40), st.sampled_from([1, 3000]))
def test_a_text_comes_back_from_pieces_cut_anywhere(text: str, piece: int, times: int) -> None:
    data = (text * times).encode()
    value = seal_text(b"k" * 32, b"name", data).decode()
    step = piece * (1 if times == 1 else 997)
    pieces = [value[start : start + step] for start in range(0, len(value), step)]
    assert "".join(open_text(b"k" * 32, b"name", pieces)).encode() == data
    assert text_size(len(value)) == len(data)


@pytest.mark.parametrize("length", [0, 20, 60, -1], ids=["mark", "header", "tag", "end"])
def test_a_cut_text_is_refused(length: int) -> None:
    value = seal_text(b"k" * 32, b"name", b"text").decode()
    with pytest.raises(Damaged):
        "".join(open_text(b"k" * 32, b"name", [value[:length]]))


def test_a_text_of_another_name_or_key_is_refused() -> None:
    value = seal_text(b"k" * 32, b"name", b"text").decode()
    for data_key, name in ((b"k" * 32, b"nome"), (b"K" * 32, b"name")):
        with pytest.raises(Damaged):
            "".join(open_text(data_key, name, [value]))

"""Objects made of pieces: large files are written piece by piece, and read as one."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import msgspec

from lowtide.core.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lowtide.objects.store import ObjectStore, ObjectWriter


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a joined object: the key of its own object, and its size in bytes."""

    key: str
    size: int


_PREFIX: Final = "joined/"
_REMEMBERED: Final = 64
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Piece]).decode


def joined_key(name: str) -> str:
    """Return the key of a joined object; objects with other keys are plain."""
    return _PREFIX + name


def is_joined(key: str) -> bool:
    """Return whether the object of a key is made of others."""
    return key.startswith(_PREFIX)


class JoinedObjects:
    """An object store in which an object may be made of others.

    The object of a joined key lists its pieces; it is written once and never changed. Deleting it
    deletes the pieces first, so that an interrupted deletion can be repeated.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._layout = lru_cache(_REMEMBERED)(self._read)

    def join(self, key: str, pieces: Sequence[Piece]) -> None:
        """Make the object of a joined key of complete objects, in their order."""
        with self._store.open_writer(key) as writer:
            writer.write(_encode(pieces))

    def pieces(self, key: str) -> Sequence[Piece]:
        """Return the pieces of a joined object; raises NotFound."""
        return self._layout(key).pieces

    def open_writer(self, key: str) -> ObjectWriter:
        """Start a plain object; memory stays bounded for any size."""
        return self._store.open_writer(key)

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `end`; raises NotFound for an unknown key."""
        if not is_joined(key):
            yield from self._store.stream(key, start, end)
            return
        layout = self._layout(key)
        stop = layout.size if end is None else end
        for piece, offset, length in layout.cut(start, stop - start):
            yield from self._store.stream(piece, offset, offset + length)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Return the bytes of each (offset, length); near ranges are fetched together.

        A range that exceeds the object is truncated, or empty.
        """
        if not is_joined(key):
            return self._store.read_ranges(key, ranges)
        reads = _Reads(self._layout(key), ranges)
        return reads.join(
            [self._store.read_ranges(piece, wanted) for piece, wanted in reads.by_piece.items()]
        )

    async def fetch_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Read ranges as `read_ranges` does, without blocking; cancelling ends the read."""
        if not is_joined(key):
            return await self._store.fetch_ranges(key, ranges)
        reads = _Reads(await asyncio.to_thread(self._layout, key), ranges)
        fetches = [
            self._store.fetch_ranges(piece, wanted) for piece, wanted in reads.by_piece.items()
        ]
        return reads.join(await asyncio.gather(*fetches))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, joined ones with their pieces; unknown keys are ignored."""
        for key in keys:
            if is_joined(key):
                self._delete_pieces(key)
        self._store.delete(keys)

    def check(self) -> None:
        """Raise Unavailable if the store does not respond."""
        self._store.check()

    def _delete_pieces(self, key: str) -> None:
        try:
            pieces = self._read(key).pieces
        except NotFound:
            return
        self._store.delete([piece.key for piece in pieces])

    def _read(self, key: str) -> _Layout:
        return _Layout(_decode(b"".join(self._store.stream(key))))


class _Layout:
    """The pieces of a joined object, and where each starts in it."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        ends = list(accumulate(piece.size for piece in pieces))
        self._starts = [0, *ends]
        self.size = self._starts.pop()

    def cut(self, start: int, length: int) -> Iterable[tuple[str, int, int]]:
        """Yield (key, offset, length) of the parts of pieces that make a range, as far as it exists."""
        stop = min(start + length, self.size)
        number = max(0, bisect_right(self._starts, start) - 1)
        while start < stop:
            piece, begin = self.pieces[number], self._starts[number]
            end = min(stop, begin + piece.size)
            if start < end:
                yield piece.key, start - begin, end - start
                start = end
            number += 1


class _Reads:
    """Ranges of a joined object as ranges of its pieces, and the way back."""

    def __init__(self, layout: _Layout, ranges: Sequence[tuple[int, int]]) -> None:
        self.by_piece: dict[str, list[tuple[int, int]]] = {}
        self._parts: list[list[tuple[str, int]]] = []
        for start, length in ranges:
            parts = []
            for key, offset, size in layout.cut(start, length):
                wanted = self.by_piece.setdefault(key, [])
                parts.append((key, len(wanted)))
                wanted.append((offset, size))
            self._parts.append(parts)

    def join(self, blobs: Sequence[Sequence[bytes]]) -> Sequence[bytes]:
        """Return the bytes of each range out of those read of each piece."""
        read = dict(zip(self.by_piece, blobs, strict=True))
        return [b"".join(read[key][at] for key, at in parts) for parts in self._parts]

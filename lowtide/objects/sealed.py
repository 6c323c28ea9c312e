"""An object store that encrypts the objects whose key names a data key."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from itertools import groupby
from typing import TYPE_CHECKING, cast

from lowtide.objects.names import DataKeyId, data_key_of, is_sealed
from lowtide.objects.sealing import HEADER, SEALED_SEGMENT, SEGMENT, Opener, Sealer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from lowtide.objects.store import ObjectStore, ObjectWriter


class SealedObjects:
    """Encrypts objects on the way in and decrypts them on the way out, whole or by range.

    `key_of` returns a data key; raises KeyDestroyed. A range costs the segments that it touches.
    """

    def __init__(self, store: ObjectStore, key_of: Callable[[DataKeyId], bytes]) -> None:
        self._store = store
        self._key_of = key_of

    def open_writer(self, key: str) -> ObjectWriter:
        """Start an object; memory stays bounded for any size."""
        if not is_sealed(key):
            return self._store.open_writer(key)
        return SealedWriter(self._store.open_writer(key), lambda: self._data_key(key), key)

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `end`; raises NotFound for an unknown key."""
        if not is_sealed(key):
            yield from self._store.stream(key, start, end)
            return
        if end is not None and end <= start:
            return
        position = start // SEGMENT * SEGMENT
        for piece in self._segments(key, start // SEGMENT, end):
            stop = len(piece) if end is None else end - position
            if cut := piece[max(start - position, 0) : stop]:
                yield cut
            position += len(piece)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Return the bytes of each (offset, length); near ranges are fetched together.

        A range that exceeds the object is truncated, or empty.
        """
        if not is_sealed(key):
            return self._store.read_ranges(key, ranges)
        reads = _Reads(ranges)
        data_key = self._data_key(key)
        return self._open(reads, data_key, key, self._store.read_ranges(key, reads.wanted))

    async def fetch_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Read ranges as `read_ranges` does, without blocking; cancelling ends the read."""
        if not is_sealed(key):
            return await self._store.fetch_ranges(key, ranges)
        reads = _Reads(ranges)
        data_key = await asyncio.to_thread(self._data_key, key)
        blobs = await self._store.fetch_ranges(key, reads.wanted)
        return await asyncio.to_thread(self._open, reads, data_key, key, blobs)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; unknown keys are ignored."""
        self._store.delete(keys)

    def check(self) -> None:
        """Raise Unavailable if the store does not respond."""
        self._store.check()

    def _data_key(self, key: str) -> bytes:
        return self._key_of(cast("DataKeyId", data_key_of(key)))

    def _open(
        self, reads: _Reads, data_key: bytes, key: str, blobs: Sequence[bytes]
    ) -> Sequence[bytes]:
        if reads.exceed(blobs):
            self._check_end(key)
        return reads.open(data_key, key, blobs)

    def _check_end(self, key: str) -> None:
        """Raise Damaged unless the object ends with its last segment, and not before."""
        for _ in self._segments(key, 0, None):
            pass

    def _segments(self, key: str, first: int, end: int | None) -> Iterator[bytes]:
        """Yield the text of segments from the first on, up to that of the byte before `end`."""
        data_key = self._data_key(key)
        (header,) = self._store.read_ranges(key, [(0, HEADER)])
        opener = Opener(data_key, key.encode(), header, first)
        begin = HEADER + first * SEALED_SEGMENT
        stop = None if end is None else HEADER + -(-end // SEGMENT) * SEALED_SEGMENT
        size = 0
        for piece in self._store.stream(key, begin, stop):
            size += len(piece)
            yield from opener.add(piece)
        if size or not first:
            yield opener.end(last=None if stop is not None and size == stop - begin else True)
        else:
            self._check_end(key)


class SealedWriter:
    """An object that is encrypted as it is written."""

    def __init__(self, writer: ObjectWriter, data_key: Callable[[], bytes], key: str) -> None:
        self._writer = writer
        self._data_key = data_key
        self._key = key
        self._sealer: Sealer | None = None

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if self._sealer is not None:
            for sealed in self._sealer.add(data):
                self._writer.write(sealed)

    def __enter__(self) -> Self:
        self._sealer = Sealer(self._data_key(), self._key.encode())
        self._writer.__enter__()
        self._writer.write(self._sealer.header)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._sealer is not None:
            try:
                self._writer.write(self._sealer.end())
            except BaseException as failure:
                self._writer.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._writer.__exit__(kind, error, trace)


class _Reads:
    """Ranges of a text as the ranges of its encrypted segments, and the way back."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = ranges
        numbers = {
            number
            for start, length in ranges
            if length
            for number in range(start // SEGMENT, (start + length - 1) // SEGMENT + 1)
        }
        runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
        self._runs = [[number for _, number in run] for _, run in runs]
        self.wanted = [
            (0, HEADER),
            *((HEADER + run[0] * SEALED_SEGMENT, len(run) * SEALED_SEGMENT) for run in self._runs),
        ]

    def exceed(self, blobs: Sequence[bytes]) -> bool:
        """Return whether a range starts where there is no segment."""
        return any(run[0] and not blob for run, blob in zip(self._runs, blobs[1:], strict=True))

    def open(self, data_key: bytes, key: str, blobs: Sequence[bytes]) -> Sequence[bytes]:
        """Return the bytes of each range out of the encrypted ones; raises Damaged."""
        header, *sealed = blobs
        opener = Opener(data_key, key.encode(), header)
        texts = [
            # Where there is no segment, the range is beyond the object's end.
            (run[0] * SEGMENT, opener.run(run[0], blob, len(run)) if blob or not run[0] else b"")
            for run, blob in zip(self._runs, sealed, strict=True)
        ]
        return [self._cut(texts, start, length) for start, length in self._ranges]

    @staticmethod
    def _cut(texts: Sequence[tuple[int, bytes]], start: int, length: int) -> bytes:
        if not length:
            return b""
        begin, text = texts[bisect_right(texts, start, key=lambda pair: pair[0]) - 1]
        return text[start - begin : start - begin + length]

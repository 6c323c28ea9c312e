"""The custom_ids of a file: finding those that repeat, in bounded memory.

Up to EXACT ids are kept with their lines, so that a repeated one is known at once. From then on only
a fingerprint of 56 bits per id is kept, in six to seven bytes. Fingerprints that occur twice are looked
up in the index at the end, so that a unique id is never reported.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from lowtide.files.index import IndexRow


EXACT: Final = 200_000
"""Ids up to this number are kept as they are; a chunk of a file may add some more."""
# Ids up to this length are kept as they are, longer ones as digests, so that EXACT stay small.
_SHORT_ID: Final = 64
# Two of 20,000,000 unique ids share a fingerprint in one of 360 files.
_FINGERPRINT: Final = (1 << 56) - 1
_BUCKETS: Final = 256
# A file with more repeated ids is reported with some of them.
_MAX_SUSPECTS: Final = 1000


class Repeated(NamedTuple):
    """A request whose custom_id an earlier one has."""

    first: IndexRow
    again: IndexRow


class CustomIds:
    """The custom_ids of one file, in order.

    `first_line` returns the line of the first request with this id, or the given line if no earlier
    one is known to have it.
    """

    def __init__(self, exact: int = EXACT) -> None:
        self._exact = exact
        self._lines: dict[str | bytes, int] = {}
        # Bits 8 to 39 and 40 to 55 of the fingerprints of each bucket, which bits 0 to 7 number.
        self._lows: list[array[int]] = []
        self._highs: list[array[int]] = []
        self._first_line: Callable[[str | bytes, int], int] = self._lines.setdefault

    def first_line(self, custom_id: str, line: int) -> int:
        """Record the id of a line; return the first line known to have it."""
        return self._first_line(_key(custom_id), line)

    @property
    def short(self) -> Callable[[str | bytes, int], int]:
        """`first_line` without its overhead, for ids of up to 64 characters."""
        return self._first_line

    def compact(self) -> bool:
        """Keep fingerprints from now on if there are many ids; return whether that changed."""
        if self._lows or len(self._lines) <= self._exact:
            return False
        self._lows = [array("I") for _ in range(_BUCKETS)]
        self._highs = [array("H") for _ in range(_BUCKETS)]
        for key in self._lines:
            self._note(key, 0)
        self._lines.clear()
        self._first_line = self._note
        return True

    def suspects(self) -> frozenset[int]:
        """Return fingerprints that occur twice; empty if all ids are unique."""
        found: set[int] = set()
        for bucket, (lows, highs) in enumerate(zip(self._lows, self._highs, strict=True)):
            if len(set(lows)) == len(lows):
                continue
            twice = _repeated(lows)
            candidates = [
                high << 40 | low << 8 | bucket
                for low, high in zip(lows, highs, strict=True)
                if low in twice
            ]
            found |= _repeated(candidates)
            if len(found) >= _MAX_SUSPECTS:
                break
        return frozenset(found)

    def _note(self, key: str | bytes, line: int) -> int:
        value = hash(key)
        bucket = value & 255
        self._lows[bucket].append(value >> 8 & 0xFFFFFFFF)
        self._highs[bucket].append(value >> 40 & 0xFFFF)
        return line


def _repeated(values: Iterable[int]) -> set[int]:
    seen: set[int] = set()
    twice: set[int] = set()
    for value in values:
        (twice if value in seen else seen).add(value)
    return twice


def repeated(rows: Iterable[IndexRow], suspects: Collection[int]) -> Iterator[Repeated]:
    """Yield the requests with a suspected fingerprint whose id really repeats."""
    first: dict[str, IndexRow] = {}
    for row in rows:
        if hash(_key(row.custom_id)) & _FINGERPRINT in suspects:
            earlier = first.setdefault(row.custom_id, row)
            if earlier is not row:
                yield Repeated(earlier, row)


def _key(custom_id: str) -> str | bytes:
    if len(custom_id) <= _SHORT_ID:
        return custom_id
    return blake2b(custom_id.encode(), digest_size=16).digest()

"""The order of requests by prefix: those whose prompts begin alike go next to each other.

An engine with a prefix cache computes a common beginning once, if it meets the next request that
has it before the cache is full of others. The order is kept per window of requests: groups in the
order of their first request, requests in the order of the file. A file whose prompts have nothing
in common keeps its order, as does one that is grouped already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.files.lines import InputLine

WINDOW: Final = 16_384
"""Requests that are ordered together, counted from the first one of the file."""
LEVELS: Final = tuple(512 << n for n in range(8))
"""Compared beginnings, in bytes of JSON: at least half of what two prompts share is found."""
_MAX_KNOWN: Final = 65_536
"""Beginnings to remember: a few MB."""
_MARKERS: Final = {
    "/v1/chat/completions": b'"messages"',
    "/v1/completions": b'"prompt"',
    "/v1/responses": b'"input"',
}


class Prefixes:
    """Find the requests whose prompts begin like earlier ones of the same file."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}

    def find(self, endpoint: str | None, line: bytes, number: int) -> tuple[int, ...]:
        """Return, for each level, the first request whose prompt begins like that of this line.

        Ends at the first level that no earlier request shares, where this one is remembered: a
        prompt that has nothing in common with others costs one hash of 512 bytes, and the first of
        a group is not compared any further. Other endpoints have no prompt of which an engine could
        keep anything.
        """
        marker = _MARKERS.get(endpoint or "")
        start = -1 if marker is None else line.find(marker)
        if start < 0:
            return ()
        if len(self._first) > _MAX_KNOWN:
            self._first.clear()
        found: list[int] = []
        low, before = start, 0
        for level in LEVELS:
            high = start + level
            if high > len(line):
                break
            before = hash((before, line[low:high]))
            first = self._first.setdefault(before, number)
            if first == number:
                break
            found.append(first)
            low = high
        return tuple(found)


def places(lines: Sequence[InputLine]) -> Sequence[int]:
    """Return the places of consecutive requests of one window in the order by prefix.

    Places are numbered like the requests: without common prefixes, they are the same numbers.
    """
    numbers = [line.number for line in lines]
    if not any(line.prefix for line in lines):
        return numbers
    ordered = sorted(lines, key=lambda line: (*line.prefix, line.number))
    place_of = {line.number: place for line, place in zip(ordered, numbers, strict=True)}
    return [place_of[number] for number in numbers]

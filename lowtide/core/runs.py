"""Runs: requests of one batch with the same history, which the queue keeps in one row.

The lines of a run are a multirange of PostgreSQL, such as `{[1,5),[7,8)}`, within one block of
RUN_LINES lines.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RUN_LINES: Final = 128
"""Lines of a block: line 1 starts the first one."""
_RANGE: Final = re.compile(r"\[(\d+),(\d+)\)")


def block_of(line: int) -> int:
    """Return the first line of the block with this line."""
    return line - (line - 1) % RUN_LINES


def multirange(lines: Iterable[int]) -> str:
    """Return these lines, in any order, as a multirange."""
    ranges: list[str] = []
    start = end = None
    for line in sorted(lines):
        if line == end:
            end += 1
            continue
        if end is not None:
            ranges.append(f"[{start},{end})")
        start, end = line, line + 1
    if end is not None:
        ranges.append(f"[{start},{end})")
    return f"{{{','.join(ranges)}}}"


def lines_of(multirange: str) -> Iterator[int]:
    """Yield the lines of a multirange in order."""
    for start, end in _RANGE.findall(multirange):
        yield from range(int(start), int(end))

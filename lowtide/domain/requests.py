"""Lines of a batch as they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.domain.outputs import FinishedLine
    from lowtide.domain.pools import Pool
    from lowtide.domain.statuses import RequestStatus


@dataclass(frozen=True, slots=True)
class RequestState:
    """One line as it stands; `pool` is None for a line that was dropped before it ran."""

    line: int
    custom_id: str
    status: RequestStatus
    pool: Pool | None
    attempts: int
    interruptions: int
    escalated: bool
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    status_code: int | None
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True)
class ResultCursor:
    """A place in the order in which results were committed.

    Reading from here on misses nothing: `transaction` only ever covers what is committed, and what
    commits later comes later.
    """

    transaction: int = 0
    line: int = 0

    def __str__(self) -> str:
        return f"{self.transaction}.{self.line}"


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Results in commit order, where to go on, and whether these were the last there will be."""

    lines: tuple[FinishedLine, ...]
    cursor: ResultCursor
    complete: bool


def parse_cursor(text: str) -> ResultCursor | None:
    """Return the cursor behind its text, or None when `text` is not one."""
    transaction, dot, line = text.partition(".")
    if not dot or not all(part.isascii() and part.isdigit() for part in (transaction, line)):
        return None
    if len(transaction) > 19 or len(line) > 9:
        return None
    return ResultCursor(int(transaction), int(line))

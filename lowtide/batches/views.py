"""Batches as lists and details show them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.batches.model import FINAL_STATUSES, BatchStatus, SlaState

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.batches.model import Batch
    from lowtide.batches.results import RequestState
    from lowtide.core.ids import BatchId, FileId, TenantId
    from lowtide.core.pools import Cost, Pool


COUNTED: Final = 1000
"""How far matches are counted; more are `1000+`."""


class BatchOrder(StrEnum):
    """By creation, or what is not over first and by creation within."""

    ACTIVE = "active"
    NEWEST = "newest"
    OLDEST = "oldest"


@dataclass(frozen=True, slots=True)
class BatchFilter:
    """What batches are wanted; nothing named is no condition. `user` is a part of the user's id."""

    statuses: frozenset[BatchStatus] = frozenset()
    sla: frozenset[SlaState] = frozenset()
    user: str = ""
    tenant: TenantId | None = None


@dataclass(frozen=True, slots=True)
class BatchMark:
    """Where a page ended: at this batch, which was active or was not."""

    batch: BatchId
    active: bool = False

    def __str__(self) -> str:
        return f"{'a' if self.active else 'e'}{self.batch.hex}"


def mark_of(batch: Batch) -> BatchMark:
    """Return the mark at a batch."""
    return BatchMark(batch.id, batch.status not in FINAL_STATUSES)


@dataclass(frozen=True, slots=True)
class CancelPlan:
    """What would be cancelled: `unchanged` are over or cancelling already, `more` need another call."""

    batches: tuple[BatchId, ...]
    unchanged: int
    more: bool


MOST_NOTES: Final = 20
MOST_ERRORS: Final = 5
MOST_SHOWN: Final = 200_000
"""How many bytes of an input, and characters of an output, are shown; the files have the rest."""
ERRORS_FROM: Final = 10_000
"""Of how many failed lines errors are counted, in input order."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened to lines; `line` is None when it happened to several at once."""

    kind: str
    pool: Pool
    line: int | None
    lines: int
    detail: str
    at: datetime
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class TopError:
    """An error that lines ended with, and the first of them."""

    code: str
    message: str
    lines: int
    first_line: int


@dataclass(frozen=True, slots=True)
class BatchFile:
    """A file of a batch: `role` is input, output or error. `bytes` is None once it is deleted."""

    role: str
    id: FileId
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class BatchDetails:
    """One reading, at the database's time `at`; `notes` are the newest, newest first."""

    at: datetime
    batch: Batch
    tenant_name: str | None
    queued: int
    running: int
    notes: tuple[Note, ...]
    errors: tuple[TopError, ...]
    files: tuple[BatchFile, ...]
    cost: Cost | None = None

    def priced(self, batch: Batch, cost: Cost) -> BatchDetails:
        """Return this with the batch as forecast, and what it costs."""
        return replace(self, batch=batch, cost=cost)


@dataclass(frozen=True, slots=True)
class LineRecord:
    """A line with its answer; `start` and `length` say where its bytes lie in `input_key`.

    `body` is the first MOST_SHOWN characters of the answer, which has `body_bytes` in all.
    """

    state: RequestState
    input_key: str
    start: int
    length: int
    request_id: str | None
    body: str | None
    body_bytes: int
    input_tokens: int
    output_tokens: int
    worker: str | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class LineDetails:
    """A line with its first MOST_SHOWN bytes, None when the input file is gone."""

    record: LineRecord
    input: bytes | None

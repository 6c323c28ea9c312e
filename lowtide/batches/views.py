"""Views of batches: filters, pages and details."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from uuid import UUID

from lowtide.batches.model import FINAL_STATUSES, BatchStatus, SlaState
from lowtide.core.ids import EPOCH, BatchId
from lowtide.planning.reasons import Reason, describe

if TYPE_CHECKING:
    from lowtide.batches.model import Batch
    from lowtide.batches.results import RequestState
    from lowtide.core.ids import FileId, TenantId
    from lowtide.core.pools import Pool
    from lowtide.fleets.placement import BatchPart
    from lowtide.planning.reasons import Bound


_MARK: Final = re.compile(r"([ae])([0-9a-f]{32})([0-9]{1,17})")
COUNTED: Final = 1000
"""Max count of matches; more are shown as `1000+`."""


class BatchOrder(StrEnum):
    """Orders of a list: by creation; active batches first, the newest or the most urgent of them.

    Each is that of an index. Progress, duration and cost come from tallies: to order by them, every
    batch would have to be summed.
    """

    ACTIVE = "active"
    DEADLINE = "deadline"
    NEWEST = "newest"
    OLDEST = "oldest"


@dataclass(frozen=True, slots=True)
class BatchFilter:
    """A filter for batches; an empty field matches any.

    `user` is a part of the user's id; `all_failed` matches completed batches without a completed
    request, `ended_lately` those that ended in the last 24 hours.
    """

    statuses: frozenset[BatchStatus] = frozenset()
    sla: frozenset[SlaState] = frozenset()
    user: str = ""
    tenant: TenantId | None = None
    all_failed: bool = False
    ended_lately: bool = False


@dataclass(frozen=True, slots=True)
class BatchMark:
    """The end of a page: its last batch, which was active or not, with its deadline."""

    batch: BatchId
    active: bool
    deadline: datetime

    def __str__(self) -> str:
        since_epoch = (self.deadline - EPOCH) // timedelta(microseconds=1)
        return f"{'a' if self.active else 'e'}{self.batch.hex}{since_epoch}"


def mark_of(batch: Batch) -> BatchMark:
    """Return the mark of a batch."""
    return BatchMark(batch.id, batch.status not in FINAL_STATUSES, batch.deadline)


def parse_mark(text: str) -> BatchMark | None:
    """Parse a mark; return None if `text` is not one."""
    match = _MARK.fullmatch(text)
    if match is None:
        return None
    deadline = EPOCH + timedelta(microseconds=int(match[3]))
    return BatchMark(BatchId(UUID(hex=match[2])), match[1] == "a", deadline)


@dataclass(frozen=True, slots=True)
class CancelPlan:
    """Batches to cancel; `unchanged` are final or cancelling, `more` if another call is needed."""

    batches: tuple[BatchId, ...]
    unchanged: int
    more: bool


MAX_NOTES: Final = 20
MAX_ERRORS: Final = 5
MAX_SHOWN: Final = 200_000
"""Max bytes of an input, and characters of an output, shown; the files have the rest."""
ERRORS_FROM: Final = 10_000
"""Max number of failed requests whose errors are counted, in input order."""


@dataclass(frozen=True, slots=True)
class Note:
    """An event of requests; `line` is None if it concerns several.

    The scheduler's moves and marks have a `reason`, the others a `detail`; that of a fallback is the
    fleet that the requests moved to.
    """

    kind: str
    pool: Pool
    line: int | None
    lines: int
    detail: str
    at: datetime
    worker: str | None = None
    reason: Reason | None = None
    bound: Bound | None = None

    @property
    def cause(self) -> str:
        """The reason or the detail, in words."""
        if self.reason is Reason.FALLBACK and self.detail:
            return f"Fleet {self.detail} can still hold the deadline"
        return self.detail if self.reason is None else describe(self.reason, self.bound)


@dataclass(frozen=True, slots=True)
class TopError:
    """An error of failed requests, their number, and the first line."""

    code: str
    message: str
    lines: int
    first_line: int


@dataclass(frozen=True, slots=True)
class BatchFile:
    """A file of a batch; `role` is input, output or error, `bytes` is None once it is deleted."""

    role: str
    id: FileId
    bytes: int | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class BatchDetails:
    """The details of a batch at the database's time `at`; `notes` are the latest, newest first.

    `parts` are its requests by fleet, by name, if several fleets run it.
    """

    at: datetime
    batch: Batch
    tenant_name: str | None
    notes: tuple[Note, ...]
    errors: tuple[TopError, ...]
    files: tuple[BatchFile, ...]
    parts: tuple[BatchPart, ...] = ()


@dataclass(frozen=True, slots=True)
class LineRecord:
    """A request with its response; `start` and `length` locate its bytes in `input_key`.

    `body` is the beginning of a response of `body_bytes` bytes; one that `was_answered` had one.
    """

    state: RequestState
    input_key: str
    start: int
    length: int
    request_id: str | None
    was_answered: bool
    body: bytes | None
    body_bytes: int
    input_tokens: int
    output_tokens: int
    worker: str | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class LineDetails:
    """A request with the first MAX_SHOWN bytes of its input, None if the input file is gone.

    The file with the response of an `is_erased` one is gone, too.
    """

    record: LineRecord
    input: bytes | None
    is_erased: bool = False

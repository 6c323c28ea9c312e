"""Which batches are listed, and in what order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.domain.statuses import FINAL_STATUSES, BatchStatus, SlaState

if TYPE_CHECKING:
    from lowtide.domain.batches import Batch
    from lowtide.domain.ids import BatchId, TenantId

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

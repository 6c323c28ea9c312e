"""Work that an event announces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.domain.ids import BatchId, TenantId
    from lowtide.domain.statuses import BatchStatus


@dataclass(frozen=True, slots=True)
class SplitJob:
    """A batch whose file waits to be split."""

    batch: BatchId
    tenant: TenantId
    input_key: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class FinalJob:
    """A drained batch to close; `final_status` is how it ends, `files_expire_at` when its files do."""

    batch: BatchId
    tenant: TenantId
    final_status: BatchStatus
    drained_at: datetime
    files_expire_at: datetime | None

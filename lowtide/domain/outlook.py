"""What lies ahead: the open lines of all tenants, and the workers that run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain.estimates import expected_completion
from lowtide.domain.statuses import BatchStatus

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.domain.batches import Batch
    from lowtide.domain.demand import Demand
    from lowtide.domain.estimates import Crew


@dataclass(frozen=True, slots=True)
class Outlook:
    """One look, at the database's time `at`; `demand` covers every batch, also the one asked for."""

    at: datetime
    demand: tuple[Demand, ...]
    crews: tuple[Crew, ...]
    attempts: float = 1.0

    def eta(self, batch: Batch) -> datetime | None:
        """Return when a batch will probably be done; None unless it is in progress and workers run."""
        if batch.status is not BatchStatus.IN_PROGRESS:
            return None
        ahead = sum(other.lines for other in self.demand if other.deadline < batch.deadline)
        return expected_completion(
            batch.total - batch.completed - batch.failed,
            ahead,
            self.crews,
            self.at,
            attempts=self.attempts,
        )

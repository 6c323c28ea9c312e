"""Batch and request states, and the one mapping between their two vocabularies."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class BatchStatus(StrEnum):
    """OpenAI's batch statuses."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class RequestStatus(StrEnum):
    """The states of one line, as the portal shows them."""

    QUEUED = "Queued"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    DEAD_LETTERED = "DeadLettered"


class SlaState(StrEnum):
    """Where a batch stands against its deadline."""

    IN_PROGRESS = "In progress"
    AT_RISK = "At risk"
    MET = "Met"
    BREACHED = "Breached"


BATCH_TRANSITIONS: Final[dict[BatchStatus, frozenset[BatchStatus]]] = {
    BatchStatus.VALIDATING: frozenset(
        {BatchStatus.FAILED, BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING}
    ),
    BatchStatus.IN_PROGRESS: frozenset(
        {BatchStatus.FINALIZING, BatchStatus.EXPIRED, BatchStatus.CANCELLING}
    ),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED, BatchStatus.CANCELLING}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
    BatchStatus.FAILED: frozenset(),
    BatchStatus.COMPLETED: frozenset(),
    BatchStatus.EXPIRED: frozenset(),
    BatchStatus.CANCELLED: frozenset(),
}
"""The status machine; every UPDATE of a status guards on the states before it."""

FINAL_STATUSES: Final = frozenset(
    status for status, following in BATCH_TRANSITIONS.items() if not following
)
CANCELLABLE_STATUSES: Final = frozenset(
    status for status, following in BATCH_TRANSITIONS.items() if BatchStatus.CANCELLING in following
)

SHOWN_AS: Final[dict[BatchStatus, RequestStatus]] = {
    BatchStatus.VALIDATING: RequestStatus.QUEUED,
    BatchStatus.IN_PROGRESS: RequestStatus.RUNNING,
    BatchStatus.FINALIZING: RequestStatus.RUNNING,
    BatchStatus.CANCELLING: RequestStatus.RUNNING,
    BatchStatus.COMPLETED: RequestStatus.COMPLETED,
    BatchStatus.FAILED: RequestStatus.FAILED,
    BatchStatus.EXPIRED: RequestStatus.FAILED,
    BatchStatus.CANCELLED: RequestStatus.FAILED,
}
"""How the portal names a batch beside its exact status."""

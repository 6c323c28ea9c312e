"""Batch states and records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.core.pools import Pool

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from lowtide.core.ids import BatchId, FileId, TenantId
    from lowtide.files.lines import Problem
    from lowtide.telemetry.tracing import TraceContext


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
    """The states of a request, as the portal shows them."""

    QUEUED = "Queued"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    DEAD_LETTERED = "DeadLettered"


class SlaState(StrEnum):
    """The state of a batch relative to its deadline."""

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
"""The state machine; every UPDATE of a status guards on the preceding states."""

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
"""The portal's name for a batch status, shown beside the exact one."""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch to be created; `output_expires_after` is in seconds, None keeps its files.

    `idempotency_digest` is that of the body sent with the key; None matches any. Requests start in
    `pool`; those that start in dedicated stay there. `actor` is recorded in the audit log; None
    leaves that to the caller.
    """

    id: BatchId
    tenant: TenantId
    user: str
    input_file: FileId
    endpoint: str
    completion_window: str
    created_at: datetime
    deadline: datetime
    metadata: Mapping[str, str] | None
    idempotency_key: str | None
    idempotency_digest: bytes | None = None
    output_expires_after: int | None = None
    trace: TraceContext | None = None
    pool: Pool = Pool.SPOT
    actor: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The current state of a batch; completed + failed <= total, equal when final.

    `cached_tokens` are part of the input tokens, `reasoning_tokens` of the output tokens.
    `spot_seconds` and `dedicated_seconds` are its results' share of replica time; `eta` is the
    expected completion, None if final or unknown; `trace` is the context that its work continues;
    `pool` is the pool in which its requests started.
    """

    id: BatchId
    tenant: TenantId
    user: str
    input_file: FileId
    input_key: str
    endpoint: str
    model: str | None
    completion_window: str
    status: BatchStatus
    created_at: datetime
    deadline: datetime
    in_progress_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None
    at_risk: bool
    total: int
    completed: int
    failed: int
    output_file: FileId | None
    error_file: FileId | None
    errors: tuple[Problem, ...]
    metadata: Mapping[str, str] | None
    input_tokens: int
    output_tokens: int
    interruptions: int
    retries: int
    escalations: int
    finished_on_dedicated: int
    spot_seconds: float = 0.0
    dedicated_seconds: float = 0.0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    eta: datetime | None = None
    trace: TraceContext | None = None
    pool: Pool = Pool.SPOT

    @property
    def ended_at(self) -> datetime | None:
        """The time at which the batch reached its final state."""
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The pools that its requests wait, run or ran in.

        A request leaves spot only by escalation; one that starts on dedicated stays there.
        """
        if self.ended_at is not None and self.total == 0:
            return ()
        if self.pool is Pool.DEDICATED:
            return (Pool.DEDICATED,)
        pools = []
        if self.total == 0 or self.escalations < self.total:
            pools.append(Pool.SPOT)
        if self.escalations > 0 or self.finished_on_dedicated > 0:
            pools.append(Pool.DEDICATED)
        return tuple(pools)

    @property
    def sla_state(self) -> SlaState:
        """The state relative to the deadline; failing in time, as for a bad file, counts as met."""
        if self.status is BatchStatus.EXPIRED:
            return SlaState.BREACHED
        if self.status in FINAL_STATUSES:
            late = self.ended_at is not None and self.ended_at > self.deadline
            return SlaState.BREACHED if late else SlaState.MET
        return SlaState.AT_RISK if self.at_risk else SlaState.IN_PROGRESS

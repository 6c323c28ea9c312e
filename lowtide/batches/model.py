"""Batch states and records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import NotFound
from lowtide.core.ids import format_batch_id
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.fleets.placement import DEFAULT_PLACEMENT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from lowtide.core.ids import BatchId, FileId, TenantId
    from lowtide.core.pools import Cost, Prices
    from lowtide.files.lines import Problem
    from lowtide.fleets.placement import Placement
    from lowtide.objects.data_keys import WrappedKey
    from lowtide.planning.reasons import Risk
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
    """The states of a request; the last four are its outcomes.

    Failed requests ran and failed for good, dead letters included. Expired and cancelled ones had
    no result when their batch ended.
    """

    QUEUED = "Queued"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    EXPIRED = "Expired"
    CANCELLED = "Cancelled"


OPENAI_COUNTS: Final[dict[RequestStatus, str | None]] = {
    RequestStatus.QUEUED: None,
    RequestStatus.RUNNING: None,
    RequestStatus.COMPLETED: "completed",
    RequestStatus.FAILED: "failed",
    RequestStatus.EXPIRED: "failed",
    RequestStatus.CANCELLED: "failed",
}
"""The field of OpenAI's `request_counts` that counts requests in each state, besides `total`."""


class SlaState(StrEnum):
    """The state of a batch relative to its deadline."""

    ON_TRACK = "On track"
    AT_RISK = "At risk"
    MET = "Met"
    MISSED = "Missed"
    NOT_APPLICABLE = "Not applicable"


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

DROPPED_AS: Final[dict[BatchStatus, RequestStatus]] = {
    BatchStatus.CANCELLING: RequestStatus.CANCELLED,
    BatchStatus.CANCELLED: RequestStatus.CANCELLED,
    BatchStatus.EXPIRED: RequestStatus.EXPIRED,
}
"""The outcome of requests without a result, by the status of their batch.

A batch that expires is `in_progress` until its files are written.
"""


def outcome_without_result(status: BatchStatus) -> RequestStatus:
    """Return the outcome of the requests without a result of a batch that is ending."""
    return DROPPED_AS.get(status, RequestStatus.EXPIRED)


SLA_STATES: Final[dict[BatchStatus, tuple[SlaState, SlaState]]] = {
    BatchStatus.VALIDATING: (SlaState.ON_TRACK, SlaState.AT_RISK),
    BatchStatus.IN_PROGRESS: (SlaState.ON_TRACK, SlaState.AT_RISK),
    BatchStatus.FINALIZING: (SlaState.ON_TRACK, SlaState.AT_RISK),
    BatchStatus.COMPLETED: (SlaState.MET, SlaState.MISSED),
    BatchStatus.EXPIRED: (SlaState.MISSED, SlaState.MISSED),
    BatchStatus.FAILED: (SlaState.NOT_APPLICABLE, SlaState.NOT_APPLICABLE),
    BatchStatus.CANCELLING: (SlaState.NOT_APPLICABLE, SlaState.NOT_APPLICABLE),
    BatchStatus.CANCELLED: (SlaState.NOT_APPLICABLE, SlaState.NOT_APPLICABLE),
}
"""The SLA state of a batch by its status: in time, and late or likely to be.

Files that were rejected and batches that were cancelled have no SLA. An expiring batch has missed
its deadline.
"""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The requests of a batch by state; `dead_lettered` is part of `failed`, the others add up."""

    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    dead_lettered: int = 0
    expired: int = 0
    cancelled: int = 0

    def of(self, status: RequestStatus) -> int:
        """Return the number of requests in a state."""
        count: int = getattr(self, status.name.lower())
        return count

    @property
    def openai_failed(self) -> int:
        """OpenAI's count of failed requests: all that ended without a response of success."""
        return sum(self.of(status) for status, count in OPENAI_COUNTS.items() if count == "failed")


def data_ended(batch: BatchId, at: datetime) -> NotFound:
    """Return the error for what is past a batch's retention."""
    return NotFound(
        f"The requests and results of {format_batch_id(batch)} are deleted: their retention ended at "
        f"{at:%Y-%m-%d %H:%M:%S} UTC. The batch keeps its counts, usage and cost.",
        param="batch_id",
        code="data_ended",
    )


class ExportState(StrEnum):
    """The state of copying a batch's results to a bucket."""

    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Export:
    """The copy of a batch's results to the folder `url`.

    `error` is the last one; a pending export is tried again.
    """

    url: str
    state: ExportState
    error: str | None = None


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch to be created; `output_expires_after` is in seconds, None keeps its files.

    `idempotency_digest` is that of the body sent with the key; None matches any. Requests start in
    `pool`; those that start in dedicated stay there. `prices` are those of its cost for good, if the
    same fleets split it. `actor` is recorded in the audit log; None leaves that to the caller. With an
    `input_url` the input file is imported from there. Results are copied to the folder `output_url`.
    With a `data_key` it has zero retention. The fleets of `placement` run it. A higher `priority` goes
    first among its tenant's batches whose deadlines hold.
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
    prices: Prices
    idempotency_digest: bytes | None = None
    output_expires_after: int | None = None
    trace: TraceContext | None = None
    pool: Pool = Pool.SPOT
    actor: str | None = None
    input_url: str | None = None
    output_url: str | None = None
    data_key: WrappedKey | None = None
    placement: Placement = DEFAULT_PLACEMENT
    priority: int = 0

    @property
    def terms(self) -> dict[str, str]:
        """The values by which search finds the batch, and their fields.

        Metadata may repeat the user.
        """
        metadata = (self.metadata or {}).items()
        terms = {"user": self.user} | {
            f"metadata.{key}": value
            for key, value in metadata
            if (key, value) != ("user", self.user)
        }
        return {field: value for field, value in terms.items() if value}


@dataclass(frozen=True, slots=True)
class Batch:
    """The current state of a batch.

    `cached_tokens` are part of the input tokens, `reasoning_tokens` of the output tokens.
    `cost` is that of its results so far; `eta` is the expected completion, None if final or unknown;
    `trace` is the context that its work continues; `pool` is the pool in which its requests started. An `expiring` batch
    has missed its deadline; `risk` is the reason of `at_risk`, None unless the scheduler marked it.
    `retention` is its own, or else its tenant's, in seconds; `data_ends_at` is None until it ends.
    `input_url` is the object that its input file is imported from. `fleet` runs it; None is several, the `fleets`
    of its models.
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
    outcomes: Outcomes
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
    cost: Cost
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    eta: datetime | None = None
    trace: TraceContext | None = None
    pool: Pool = Pool.SPOT
    expiring: bool = False
    risk: Risk | None = None
    input_url: str | None = None
    export: Export | None = None
    retention: int | None = None
    data_ended_at: datetime | None = None
    data_ends_at: datetime | None = None
    zero_retention: bool = False
    fleet: str | None = DEFAULT_FLEET
    fleets: tuple[str, ...] = ()
    priority: int = 0

    def require_data(self) -> None:
        """Raise NotFound if the data of the batch has ended."""
        if self.data_ended_at is not None:
            raise data_ended(self.id, self.data_ended_at)

    @property
    def completed(self) -> int:
        """OpenAI's count of completed requests."""
        return self.outcomes.completed

    @property
    def failed(self) -> int:
        """OpenAI's count of failed requests; completed + failed <= total, equal once final."""
        return self.outcomes.openai_failed

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
        """The state relative to the deadline, as in SLA_STATES."""
        if self.expiring:
            return SlaState.MISSED
        in_time, late = SLA_STATES[self.status]
        is_late = self.at_risk if self.ended_at is None else self.ended_at > self.deadline
        return late if is_late else in_time

"""What the services need from the outside, as small Protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from lowtide.domain.batches import Batch, NewBatch
    from lowtide.domain.claims import Claim, Finished, Returned, Settled
    from lowtide.domain.escalation import Escalation, OpenBatch
    from lowtide.domain.events import Event
    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import BatchId, FileId, LeaseId, TenantId
    from lowtide.domain.jobs import FinalJob, SplitJob
    from lowtide.domain.lines import InputLine, Problem
    from lowtide.domain.outcomes import Outcome
    from lowtide.domain.outputs import FinishedLine
    from lowtide.domain.pools import Depth, Pool
    from lowtide.domain.requests import RequestState, ResultCursor, ResultPage
    from lowtide.domain.statuses import RequestStatus


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request for an engine.

    `key` is the caller's own and comes back with the outcome; `body` is exact JSON; `spot` says
    that the capacity may be interrupted; `attempt` counts from 1; `interruptions` is how often it
    was interrupted before.
    """

    key: int
    endpoint: str
    body: bytes
    attempt: int
    spot: bool
    interruptions: int = 0


class Engine(Protocol):
    """Runs requests, many at a time."""

    def run(
        self, requests: Sequence[EngineRequest]
    ) -> AsyncIterator[Sequence[tuple[int, Outcome]]]:
        """Yield (key, outcome) pairs as they finish, in groups of any size.

        Called concurrently; the engine bounds what is in flight over all calls. Every key is
        yielded exactly once; failures are outcomes, never exceptions.
        """
        ...

    async def models(self) -> Sequence[str]:
        """Return the models that are served; empty when any name is."""
        ...

    async def close(self) -> None:
        """Let go of connections; requests in flight are abandoned."""
        ...


class ObjectWriter(Protocol):
    """An object being written; it exists only once the block ends without an exception."""

    def write(self, data: bytes) -> None:
        """Append bytes."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class ObjectStore(Protocol):
    """Where files live."""

    def open_writer(self, key: str) -> ObjectWriter:
        """Start an object; memory stays bounded however much is written."""
        ...

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `end`; raises NotFound for an unknown key."""
        ...

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Return the bytes of each (offset, length), near ones fetched together."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; unknown keys are fine."""
        ...

    def check(self) -> None:
        """Raise when the store does not answer."""
        ...


class EventSink(Protocol):
    """Where CloudEvents go."""

    def publish(self, event: Event) -> bool:
        """Send one event; return whether the sink accepted it. Never raises."""
        ...


class FileCatalog(Protocol):
    """The records of stored files, for one tenant at a time."""

    def expect(self, tenant: TenantId, object_key: str) -> None:
        """Note an object before it is written, so that a crash cannot leave it behind unseen."""
        ...

    def add(self, file: StoredFile) -> None:
        """Record a file whose object is complete."""
        ...

    def get(self, tenant: TenantId, file: FileId) -> StoredFile:
        """Return a file; raises NotFound."""
        ...

    def page(
        self,
        tenant: TenantId,
        *,
        after: FileId | None,
        limit: int,
        newest_first: bool,
        purpose: str | None,
    ) -> Sequence[StoredFile]:
        """Return up to `limit` files behind `after`."""
        ...

    def remove(self, tenant: TenantId, file: FileId) -> StoredFile:
        """Forget a file; raises NotFound, or Conflict while an active batch reads it."""
        ...

    def removed(self, tenant: TenantId, object_key: str) -> None:
        """Note that the object of a forgotten file is gone from the store."""
        ...


class BatchLedger(Protocol):
    """The records of batches as users see them, for one tenant at a time."""

    def create(self, batch: NewBatch, event: Event) -> tuple[Batch, bool]:
        """Record a batch and its event together.

        Returns the batch and whether it is new: the same idempotency key returns the first one.
        Raises NotFound for an unknown input file.
        """
        ...

    def get(self, tenant: TenantId, batch: BatchId) -> Batch:
        """Return a batch; raises NotFound."""
        ...

    def page(self, tenant: TenantId, *, after: BatchId | None, limit: int) -> Sequence[Batch]:
        """Return up to `limit` batches behind `after`, newest first."""
        ...

    def cancel(self, tenant: TenantId, batch: BatchId, event: Event) -> tuple[Batch, bool]:
        """Start cancelling: drop what waits, let running lines end.

        Returns the batch and whether nothing was running, in which case `event` was recorded.
        Raises NotFound, or Conflict when the batch is already over.
        """
        ...


class RequestCatalog(Protocol):
    """The lines of batches as users see them, for one tenant at a time."""

    def page(
        self,
        tenant: TenantId,
        batch: BatchId,
        *,
        after: int,
        limit: int,
        status: RequestStatus | None,
        pool: Pool | None,
    ) -> Sequence[RequestState]:
        """Return up to `limit` lines behind line `after`, in input order."""
        ...

    def results(
        self, tenant: TenantId, batch: BatchId, cursor: ResultCursor, limit: int
    ) -> ResultPage:
        """Return up to `limit` results committed behind `cursor`."""
        ...


class ModelCatalog(Protocol):
    """The models that engines serve or served."""

    def names(self, tenant: TenantId) -> Sequence[tuple[str, datetime]]:
        """Return each model that is served or that a tenant's batches named, and since when."""
        ...

    def note(self, names: Sequence[str]) -> None:
        """Add models that an engine serves."""
        ...


class Queue(Protocol):
    """The workers' side of the queue. Everything is fenced by the lease."""

    def open_lease(self, pool: Pool, worker: str) -> LeaseId:
        """Register a worker."""
        ...

    def renew(self, lease: LeaseId) -> bool:
        """Extend the lease; False when it was given away, with all its lines."""
        ...

    def claim(self, lease: LeaseId, pool: Pool, lines: int) -> Sequence[Claim]:
        """Take up to `lines` of the most urgent lines; none when the lease is gone."""
        ...

    def settle(
        self, lease: LeaseId, finished: Sequence[Finished], returned: Sequence[Returned]
    ) -> Settled:
        """End or give back lines in one transaction; lines that are not the lease's are skipped."""
        ...

    def close_lease(self, lease: LeaseId) -> None:
        """Leave; lines still held go back to the queue."""
        ...

    def ready(self) -> None:
        """Raise when the database does not answer."""
        ...


class WorkerMeter(Protocol):
    """What a worker counts."""

    def dequeued(self, lines: int) -> None:
        """Lines were claimed."""
        ...

    def settled(self, completed: int, failed: int) -> None:
        """Lines left the worker; going back to the queue counts as failed."""
        ...

    def idle(self, seconds: float) -> None:
        """The worker waited with nothing in hand."""
        ...


class Split(Protocol):
    """The transaction of one split."""

    job: SplitJob

    def write(self, lines: Iterable[InputLine]) -> int:
        """Store requests as they come; return how many."""
        ...

    def start(self, total: int, model: str | None, event: Event) -> bool:
        """Queue what was written and record the event; False when the batch was cancelled."""
        ...

    def discard(self) -> None:
        """Undo what was written."""
        ...


class Splits(Protocol):
    """Batches whose files wait to be split."""

    def open(self, batch: BatchId) -> AbstractContextManager[Split | None]:
        """Open the transaction of a split; None when there is nothing to split."""
        ...

    def reject(self, batch: BatchId, problems: Sequence[Problem]) -> None:
        """Fail a batch whose file cannot be run."""
        ...


class Finals(Protocol):
    """Drained batches."""

    def job(self, batch: BatchId) -> FinalJob | None:
        """Return what to finalize; None when there is nothing (more) to do."""
        ...

    def lines(self, job: FinalJob, never_ran: tuple[str, str]) -> Iterator[FinishedLine]:
        """Yield every line in input order; those without a result carry code and message given."""
        ...

    def close(
        self,
        job: FinalJob,
        *,
        completed: int,
        failed: int,
        output: StoredFile | None,
        error: StoredFile | None,
        event: Event,
    ) -> bool:
        """Record files, final state and event; False when the batch has moved on meanwhile."""
        ...


class Ticks(Protocol):
    """What one tick of the scheduler reads and changes. Everything may run twice at once."""

    def snapshot(self) -> tuple[datetime | None, Sequence[OpenBatch]]:
        """Return the database's time and the batches with open lines; no time without batches."""
        ...

    def escalate(self, escalations: Sequence[Escalation]) -> Sequence[Event]:
        """Move lines to dedicated; return the recorded events that wake its workers."""
        ...

    def mark_at_risk(self, batches: frozenset[BatchId]) -> None:
        """Make exactly these running batches at risk."""
        ...

    def sweep(self, *, cancel_grace: float, stalled_after: float) -> int:
        """Give expired leases back, end what is due, announce again what stalled.

        Times in seconds. Returns how many lines of expired leases were given back.
        """
        ...

    def strays(self, limit: int) -> Sequence[str]:
        """Forget expired files; return keys of objects that belong to no file (any more)."""
        ...

    def forget_strays(self, keys: Sequence[str]) -> None:
        """Note that these objects are gone."""
        ...

    def depths(self) -> Mapping[Pool, Depth]:
        """Return how much waits and runs in each pool."""
        ...


class Outbox(Protocol):
    """CloudEvents that are recorded but not yet accepted by the sink."""

    def waiting(self, limit: int, older_than: float) -> Sequence[Event]:
        """Return events recorded more than `older_than` seconds ago, oldest first."""
        ...

    def forget(self, event: Event) -> None:
        """Drop an event that was accepted."""
        ...

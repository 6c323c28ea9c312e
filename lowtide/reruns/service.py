"""Running the failed requests of a batch again, and downloading their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lowtide.batches.model import FINAL_STATUSES
from lowtide.core.errors import Conflict, LowtideError, NotFound, Unavailable
from lowtide.core.ids import format_batch_id
from lowtide.dead_letters.model import RERUN_KEY, copy_metadata
from lowtide.dead_letters.service import input_blocks, input_gone
from lowtide.reruns.store import Failure
from lowtide.telemetry.tracing import BATCH, TENANT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from lowtide.batches.model import Batch
    from lowtide.batches.store import BatchStore
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.dead_letters.copies import Copies
    from lowtide.dead_letters.model import LetterLocation, Source
    from lowtide.dead_letters.store import DeadLetterStore
    from lowtide.events.publisher import Publisher
    from lowtide.files.store import FileStore
    from lowtide.objects.store import ObjectStore
    from lowtide.reruns.store import FailedPage, FailedRequests, RerunStore


ANY: Final = frozenset(Failure)
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class RerunRequest:
    """The parameters of a rerun; without a window the new batch has its source's."""

    batch: BatchId
    actor: str
    outcomes: frozenset[Failure] = ANY
    completion_window: str | None = None
    idempotency_key: str | None = None
    idempotency_digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class Rerun:
    """The number of requests that run again, and the new batch."""

    source: BatchId
    batch: BatchId
    requests: int


class Reruns:
    """Create a new batch of another batch's failed requests.

    The file is written first, recorded as an orphan. One transaction then records file, batch and
    event, and marks the dead letters among the requests as requeued. The source batch never
    changes.
    """

    def __init__(
        self,
        store: RerunStore,
        letters: DeadLetterStore,
        batches: BatchStore,
        files: FileStore,
        objects: ObjectStore,
        copies: Copies,
        publisher: Publisher,
    ) -> None:
        self._store = store
        self._letters = letters
        self._batches = batches
        self._files = files
        self._objects = objects
        self._copies = copies
        self._publisher = publisher

    def plan(self, tenant: TenantId, batch: BatchId) -> FailedRequests:
        """Count the failed requests that a rerun takes, by outcome.

        Raises NotFound, or Conflict if the batch has not ended or its input file is gone.
        """
        failed = self._store.count(tenant, batch)
        name = format_batch_id(batch)
        if failed.status not in FINAL_STATUSES:
            raise Conflict(
                f"{name} is {failed.status}: its failed requests can run again once it has ended.",
                param="batch_id",
                code="batch_not_ended",
            )
        if any(failed.counts.values()):
            self._source(tenant, batch)
        return failed

    def rerun(self, tenant: TenantId, request: RerunRequest) -> Rerun:
        """Run the failed requests of a batch again; a retry with the same key returns its batch.

        Raises the errors of `plan`, IdempotencyKeyReused, InvalidRequest for a window,
        TooManyRequests over a limit of the tenant, Unavailable while other calls requeue the same
        dead letters, or Conflict if no request failed or strict admission rejects the deadline.
        """
        attributes = {TENANT: str(tenant), BATCH: format_batch_id(request.batch)}
        with self._copies.tracer.span("rerun failed requests", attributes=attributes):
            if request.completion_window is not None:
                self._copies.rules.window(request.completion_window)
            for _ in range(_TRIES):
                rerun = self._earlier(tenant, request) or self._try(tenant, request)
                if rerun is not None:
                    return rerun
        raise Unavailable("Other calls are changing the same requests: try again.")

    def inputs(
        self,
        tenant: TenantId,
        batch: BatchId,
        outcomes: Collection[Failure] = ANY,
        *,
        actor: str,
    ) -> Iterator[bytes]:
        """Stream the input lines of failed requests, and record the download in the audit log.

        Dead letters that were requeued or discarded are left out. Raises NotFound, also once the
        batch's data has ended, or Conflict if the input file is gone.
        """
        self._store.require_data(tenant, batch)
        source = self._source(tenant, batch)
        subject = f"{format_batch_id(batch)}: inputs of {_words(outcomes)}"
        self._store.note_download(tenant, actor, subject)
        for page in self._store.pages(tenant, batch, outcomes):
            yield from input_blocks(self._objects, source, page.places)

    def _source(self, tenant: TenantId, batch: BatchId) -> Source:
        source = self._letters.sources(tenant, [batch]).get(batch)
        if source is None:
            name = format_batch_id(batch)
            raise NotFound(f"Batch {name!r} not found: check the id.", param="batch_id")
        if not source.has_input:
            raise input_gone([batch])
        return source

    def _earlier(self, tenant: TenantId, request: RerunRequest) -> Rerun | None:
        """Return the result of an earlier call with the same key; raises IdempotencyKeyReused."""
        if request.idempotency_key is None:
            return None
        batch = self._batches.created_under(
            tenant, request.idempotency_key, request.idempotency_digest
        )
        if batch is None:
            return None
        return Rerun(request.batch, batch.id, batch.total or self._lines(batch))

    def _lines(self, batch: Batch) -> int:
        """Return the requests of a batch that is not split yet; 0 if its file was deleted."""
        try:
            return self._files.get(batch.tenant, batch.input_file).lines
        except NotFound:
            return 0

    def _try(self, tenant: TenantId, request: RerunRequest) -> Rerun | None:
        """Run the failed requests again; return None if other calls changed them meanwhile."""
        plan = self.plan(tenant, request.batch)
        if not sum(plan.counts[outcome] for outcome in request.outcomes):
            raise _nothing_failed(request, plan)
        source = self._source(tenant, request.batch)
        letters: list[tuple[int, int, int]] = []
        pages = self._store.pages(tenant, request.batch, request.outcomes)
        file = self._copies.write(
            tenant,
            source,
            _noting_letters(pages, letters),
            filename=f"{format_batch_id(request.batch)}_failed.jsonl",
        )
        try:
            batch = self._copies.batch(
                source,
                file,
                window=request.completion_window,
                metadata=copy_metadata(source, RERUN_KEY),
                key=request.idempotency_key,
                digest=request.idempotency_digest,
            )
            event = self._copies.event(batch)
            is_recorded = self._store.record(
                request.batch,
                letters,
                batch,
                file,
                event,
                actor=request.actor,
                policy=self._copies.rules.admission,
            )
        except LowtideError as error:
            # Unavailable may hide a successful commit: the scheduler deletes the file if it is
            # still an orphan.
            if not isinstance(error, Unavailable):
                self._copies.remove(tenant, [file])
            raise
        if not is_recorded:
            self._copies.remove(tenant, [file])
            return None
        self._publisher.publish([event])
        return Rerun(request.batch, batch.id, file.lines)


def _noting_letters(
    pages: Iterator[FailedPage], letters: list[tuple[int, int, int]]
) -> Iterator[Sequence[LetterLocation]]:
    """Yield the requests of pages, and note the range of lines of pages with dead letters."""
    for page in pages:
        if page.letters:
            letters.append((*page.lines, page.letters))
        yield page.places


def _nothing_failed(request: RerunRequest, plan: FailedRequests) -> Conflict:
    message = f"{format_batch_id(request.batch)} has no {_words(request.outcomes)} requests"
    if plan.handled and Failure.FAILED in request.outcomes:
        message += f" except {plan.handled} dead letters that were requeued or discarded"
    return Conflict(f"{message}.", param="batch_id", code="no_failed_requests")


def _words(outcomes: Collection[Failure]) -> str:
    """Format outcomes, such as `failed, expired or cancelled`."""
    *others, last = [outcome.lower() for outcome in Failure if outcome in outcomes]
    return f"{', '.join(others)} or {last}" if others else last

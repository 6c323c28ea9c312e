"""Requeueing dead letters, each into exactly one new batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.core.errors import Conflict, LowtideError, Unavailable, check_key_digest
from lowtide.core.pools import Pool
from lowtide.dead_letters.model import (
    SOURCE_KEY,
    LetterFilter,
    Requeued,
    by_batch,
    copy_metadata,
    requeue_filename,
)
from lowtide.dead_letters.service import input_gone, select
from lowtide.telemetry.tracing import TENANT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lowtide.batches.model import NewBatch
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.dead_letters.copies import Copies
    from lowtide.dead_letters.model import LetterId, LetterLocation, Selection, Source
    from lowtide.dead_letters.requeue_store import RequeueStore
    from lowtide.dead_letters.store import DeadLetterStore
    from lowtide.events.publisher import Publisher
    from lowtide.files.model import StoredFile


_TRIES = 5


@dataclass(frozen=True, slots=True)
class RequeueRequest:
    """The parameters of a requeue; without a window each new batch has its source's.

    Requests are queued in `pool`; those queued in dedicated stay there.
    """

    wanted: Sequence[LetterId] | LetterFilter
    actor: str
    completion_window: str | None = None
    idempotency_key: str | None = None
    idempotency_digest: bytes | None = None
    dry_run: bool = False
    pool: Pool = Pool.SPOT


@dataclass(frozen=True, slots=True)
class RequeueOutcome:
    """The numbers of letters requeued now, requeued or discarded before, and left for another call.

    `batches` are the new ones (for a dry run, the sources of those it would create) and those of
    earlier calls.
    """

    changed: int
    unchanged: int
    remaining: int
    batches: tuple[Requeued, ...]


class Requeuer:
    """Create new batches from dead letters.

    Files are written first, each recorded as an orphan. One transaction then records files, batches
    and events, and marks the letters, provided all of them are still open: a requeue is atomic. The
    source batch's counts and files never change; the letters run in a new batch.
    """

    def __init__(
        self,
        letters: DeadLetterStore,
        requeues: RequeueStore,
        copies: Copies,
        publisher: Publisher,
        *,
        max_letters: int,
    ) -> None:
        self._letters = letters
        self._requeues = requeues
        self._copies = copies
        self._publisher = publisher
        self._max_letters = max_letters

    def requeue(self, tenant: TenantId, request: RequeueRequest) -> RequeueOutcome:
        """Requeue open letters; letters requeued before are not requeued again.

        Raises NotFound for an unknown letter, IdempotencyKeyReused, InvalidRequest, TooManyRequests
        over a tenant's limit, Unavailable while other calls change the same letters, or Conflict if
        an input file is gone, the pool has no replicas, or strict admission rejects the deadline.
        """
        with self._copies.tracer.span("requeue dead letters", attributes={TENANT: str(tenant)}):
            return self._requeue(tenant, request)

    def _requeue(self, tenant: TenantId, request: RequeueRequest) -> RequeueOutcome:
        if request.completion_window is not None:
            self._copies.rules.window(request.completion_window)
        for _ in range(_TRIES):
            earlier = self._earlier(tenant, request)
            if earlier:
                unchanged = sum(each.letters for each in earlier)
                return RequeueOutcome(0, unchanged, 0, tuple(earlier))
            selection = select(
                self._requeues, tenant, request.wanted, max_letters=self._max_letters
            )
            letters = by_batch(selection.open)
            sources = self._sources(tenant, letters)
            if request.dry_run or not letters:
                planned = [Requeued(batch, None, len(each)) for batch, each in letters.items()]
                return _outcome(selection, planned)
            self._check_pool(request.pool, sources.values())
            requeued = self._try(tenant, request, letters, sources)
            if requeued is not None:
                return _outcome(selection, requeued)
        raise Unavailable("Other calls are changing the same dead letters: try again.")

    def _earlier(self, tenant: TenantId, request: RequeueRequest) -> Sequence[Requeued]:
        """Return the result of an earlier call with the same key; raises IdempotencyKeyReused."""
        if request.idempotency_key is None:
            return ()
        earlier, digest = self._requeues.requeued_under(tenant, request.idempotency_key)
        check_key_digest(digest, request.idempotency_digest)
        return earlier

    def _check_pool(self, pool: Pool, sources: Iterable[Source]) -> None:
        """Raise Conflict for a pool without replicas, in which requests would never run."""
        is_closed = self._copies.rules.is_closed
        source = next((source for source in sources if is_closed(source, pool)), None)
        if source is None:
            return
        setting = f"LOWTIDE_{pool.upper()}_REPLICAS"
        others = [f"requeue to {other}, or " for other in Pool if not is_closed(source, other)]
        raise Conflict(
            f"These requests would never run in {pool} because {setting} is 0: "
            f"{''.join(others)}set it to 1 or more.",
            param="pool",
            code="pool_without_replicas",
        )

    def _sources(
        self, tenant: TenantId, letters: Mapping[BatchId, Sequence[LetterLocation]]
    ) -> Mapping[BatchId, Source]:
        sources = self._letters.sources(tenant, list(letters))
        missing = [batch for batch in letters if not sources[batch].has_input]
        if missing:
            raise input_gone(missing[:5])
        return sources

    def _try(
        self,
        tenant: TenantId,
        request: RequeueRequest,
        letters: Mapping[BatchId, Sequence[LetterLocation]],
        sources: Mapping[BatchId, Source],
    ) -> list[Requeued] | None:
        """Requeue these letters; return None if one is no longer open or the key has been used."""
        moves: list[tuple[NewBatch, StoredFile, Sequence[LetterLocation]]] = []
        try:
            for batch, places in letters.items():
                source = sources[batch]
                file = self._copies.write(
                    tenant, source, [places], filename=requeue_filename(batch)
                )
                new = self._copies.batch(
                    source,
                    file,
                    window=request.completion_window,
                    metadata=copy_metadata(source, SOURCE_KEY),
                    pool=request.pool,
                )
                moves.append((new, file, places))
            events = [self._copies.event(new) for new, _, _ in moves]
            is_requeued = self._requeues.requeue(
                moves,
                events,
                actor=request.actor,
                key=request.idempotency_key,
                digest=request.idempotency_digest,
                policy=self._copies.rules.admission,
            )
        except LowtideError as error:
            # Unavailable may hide a successful commit: the scheduler deletes the files if they are
            # still orphans.
            if not isinstance(error, Unavailable):
                self._copies.remove(tenant, [file for _, file, _ in moves])
            raise
        if not is_requeued:
            self._copies.remove(tenant, [file for _, file, _ in moves])
            return None
        self._publisher.publish(events)
        return [Requeued(places[0].batch, new.id, len(places)) for new, _, places in moves]


def _outcome(selection: Selection, changed: Sequence[Requeued]) -> RequeueOutcome:
    return RequeueOutcome(
        changed=sum(each.letters for each in changed),
        unchanged=selection.already_requeued + selection.discarded,
        remaining=selection.remaining,
        batches=(*changed, *selection.requeued),
    )

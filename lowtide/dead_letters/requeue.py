"""Requeueing dead letters, each into exactly one new batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from lowtide.batches.model import NewBatch
from lowtide.core.durations import parse_window
from lowtide.core.errors import Conflict, LowtideError, Unavailable, check_key_digest
from lowtide.core.ids import BatchId, FileId
from lowtide.core.pools import Pool
from lowtide.dead_letters.model import (
    LetterFilter,
    Requeued,
    by_batch,
    requeue_filename,
    requeue_metadata,
)
from lowtide.dead_letters.service import input_blocks, input_gone, select
from lowtide.events.model import EventType, batch_event
from lowtide.files.model import FileStatus, Purpose, StoredFile, object_key
from lowtide.telemetry.tracing import TENANT, UNTRACED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from lowtide.batches.admission import AdmissionPolicy
    from lowtide.core.ids import TenantId
    from lowtide.core.pools import Prices
    from lowtide.dead_letters.model import LetterId, LetterLocation, Selection, Source
    from lowtide.dead_letters.requeue_store import RequeueStore
    from lowtide.dead_letters.store import DeadLetterStore
    from lowtide.events.publisher import Publisher
    from lowtide.files.store import FileStore
    from lowtide.objects.store import ObjectStore
    from lowtide.telemetry.tracing import Tracer


_TRIES = 5


@dataclass(frozen=True, slots=True)
class RequeueRules:
    """The limits of one call: at most `most` letters; windows and file expiry in seconds.

    New batches have these `prices`. `closed` pools have no replicas. Without `admission` deadlines are not checked.
    """

    most: int
    shortest_window: int
    longest_window: int
    file_expiry: int
    prices: Prices
    closed: frozenset[Pool] = frozenset()
    admission: AdmissionPolicy | None = None


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
        files: FileStore,
        objects: ObjectStore,
        publisher: Publisher,
        rules: RequeueRules,
        *,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._letters = letters
        self._requeues = requeues
        self._files = files
        self._objects = objects
        self._publisher = publisher
        self._rules = rules
        self._new_id = new_id
        self._clock = clock
        self._tracer = tracer

    def requeue(self, tenant: TenantId, request: RequeueRequest) -> RequeueOutcome:
        """Requeue open letters; letters requeued before are not requeued again.

        Raises NotFound for an unknown letter, IdempotencyKeyReused, InvalidRequest, TooManyRequests
        over a tenant's limit, Unavailable while other calls change the same letters, or Conflict if
        an input file is gone, the pool has no replicas, or strict admission rejects the deadline.
        """
        with self._tracer.span("requeue dead letters", attributes={TENANT: str(tenant)}):
            return self._requeue(tenant, request)

    def _requeue(self, tenant: TenantId, request: RequeueRequest) -> RequeueOutcome:
        if request.completion_window is not None:
            self._window(request.completion_window)
        for _ in range(_TRIES):
            earlier = self._earlier(tenant, request)
            if earlier:
                unchanged = sum(each.letters for each in earlier)
                return RequeueOutcome(0, unchanged, 0, tuple(earlier))
            selection = select(self._requeues, tenant, request.wanted, max_letters=self._rules.most)
            letters = by_batch(selection.open)
            sources = self._sources(tenant, letters)
            if request.dry_run or not letters:
                planned = [Requeued(batch, None, len(each)) for batch, each in letters.items()]
                return _outcome(selection, planned)
            self._check_pool(request.pool)
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

    def _check_pool(self, pool: Pool) -> None:
        """Raise Conflict for a pool without replicas, in which requests would never run."""
        if pool not in self._rules.closed:
            return
        setting = f"LOWTIDE_{pool.upper()}_REPLICAS"
        others = [f"requeue to {other}, or " for other in Pool if other not in self._rules.closed]
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
                file = self._write(tenant, sources[batch], places)
                moves.append((self._batch(tenant, sources[batch], file, request), file, places))
            events = [
                batch_event(self._new_id(), EventType.BATCH_CREATED, tenant, new.id, new.trace)
                for new, _, _ in moves
            ]
            is_requeued = self._requeues.requeue(
                moves,
                events,
                actor=request.actor,
                key=request.idempotency_key,
                digest=request.idempotency_digest,
                policy=self._rules.admission,
            )
        except LowtideError as error:
            # Unavailable may hide a successful commit: the scheduler deletes the files if they are
            # still orphans.
            if not isinstance(error, Unavailable):
                self._remove(tenant, moves)
            raise
        if not is_requeued:
            self._remove(tenant, moves)
            return None
        self._publisher.publish(events)
        return [Requeued(places[0].batch, new.id, len(places)) for new, _, places in moves]

    def _write(
        self, tenant: TenantId, source: Source, places: Sequence[LetterLocation]
    ) -> StoredFile:
        """Write requests to a new input file; raises Conflict if their source file is gone."""
        now = self._clock()
        file = FileId(self._new_id())
        key = object_key(file)
        sha256, size = hashlib.sha256(), 0
        self._files.expect(tenant, key)
        with self._objects.open_writer(key) as writer:
            for block in input_blocks(self._objects, source, places):
                sha256.update(block)
                size += len(block)
                writer.write(block)
        return StoredFile(
            id=file,
            tenant=tenant,
            purpose=Purpose.BATCH,
            filename=requeue_filename(source.batch),
            size=size,
            lines=len(places),
            sha256=sha256.digest(),
            object_key=key,
            status=FileStatus.PROCESSED,
            status_details=None,
            created_at=now,
            endpoint=source.endpoint,
            expires_at=now + timedelta(seconds=self._rules.file_expiry),
            trace=self._tracer.current(),
        )

    def _batch(
        self, tenant: TenantId, source: Source, file: StoredFile, request: RequeueRequest
    ) -> NewBatch:
        now = self._clock()
        window = request.completion_window or source.completion_window
        return NewBatch(
            id=BatchId(self._new_id()),
            tenant=tenant,
            user=source.user,
            input_file=file.id,
            endpoint=source.endpoint,
            completion_window=window,
            created_at=now,
            deadline=now + self._window(window),
            metadata=requeue_metadata(source),
            idempotency_key=None,
            prices=self._rules.prices,
            output_expires_after=source.output_expires_after,
            pool=request.pool,
            trace=self._tracer.current(),
        )

    def _window(self, text: str) -> timedelta:
        return parse_window(
            text,
            shortest=timedelta(seconds=self._rules.shortest_window),
            longest=timedelta(seconds=self._rules.longest_window),
        )

    def _remove(
        self, tenant: TenantId, moves: Sequence[tuple[NewBatch, StoredFile, object]]
    ) -> None:
        """Delete files that no batch reads."""
        self._objects.delete([file.object_key for _, file, _ in moves])
        for _, file, _ in moves:
            self._files.removed(tenant, file.object_key)


def _outcome(selection: Selection, changed: Sequence[Requeued]) -> RequeueOutcome:
    return RequeueOutcome(
        changed=sum(each.letters for each in changed),
        unchanged=selection.already_requeued + selection.discarded,
        remaining=selection.remaining,
        batches=(*changed, *selection.requeued),
    )

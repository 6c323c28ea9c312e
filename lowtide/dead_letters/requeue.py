"""Running dead letters again, each in exactly one new batch."""

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
    from lowtide.dead_letters.model import LetterId, LetterPlace, Selection, Source
    from lowtide.dead_letters.requeue_store import RequeueStore
    from lowtide.dead_letters.store import DeadLetterStore
    from lowtide.events.publisher import Publisher
    from lowtide.files.store import FileStore
    from lowtide.objects.store import ObjectStore
    from lowtide.telemetry.tracing import Tracer


_TRIES = 5


@dataclass(frozen=True, slots=True)
class RequeueRules:
    """What one call takes, at most `most` letters, and how long new files live; in seconds.

    `closed` pools have no replicas. Without `admission` nothing is promised.
    """

    most: int
    shortest_window: int
    longest_window: int
    file_expiry: int
    closed: frozenset[Pool] = frozenset()
    admission: AdmissionPolicy | None = None


@dataclass(frozen=True, slots=True)
class RequeueRequest:
    """What a caller asks for; without a window each new batch has its source's.

    Lines wait for `pool`; those that wait for dedicated stay there.
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
    """How many letters a call requeued, found dealt with before, and left for another call.

    `batches` are the new ones, or for a dry run the sources of what would be new, and those of
    earlier calls.
    """

    changed: int
    unchanged: int
    remaining: int
    batches: tuple[Requeued, ...]


class Requeuer:
    """Makes new batches of dead letters.

    Files are written first, each noted as a stray. One transaction then records files, batches and
    events, and marks the letters, if all of them are open still: before it nothing has happened,
    behind it everything has. A batch's counts and files never change; the letters run in a new one.
    """

    def __init__(
        self,
        catalog: DeadLetterStore,
        desk: RequeueStore,
        files: FileStore,
        objects: ObjectStore,
        publisher: Publisher,
        rules: RequeueRules,
        *,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._catalog = catalog
        self._desk = desk
        self._files = files
        self._objects = objects
        self._publisher = publisher
        self._rules = rules
        self._new_id = new_id
        self._clock = clock
        self._tracer = tracer

    def requeue(self, tenant: TenantId, request: RequeueRequest) -> RequeueOutcome:
        """Requeue open letters; those that were requeued before stay where they are.

        Raises NotFound for an unknown letter, IdempotencyKeyReused, InvalidRequest, TooManyRequests over a tenant's limit,
        Unavailable while others change the same letters, and Conflict when an input file is gone, the pool has no
        replicas, or admission is strict and the deadline cannot be held.
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
            selection = select(self._desk, tenant, request.wanted, most=self._rules.most)
            letters = by_batch(selection.open)
            sources = self._sources(tenant, letters)
            if request.dry_run or not letters:
                would = [Requeued(batch, None, len(each)) for batch, each in letters.items()]
                return _outcome(selection, would)
            self._check_pool(request.pool)
            done = self._try(tenant, request, letters, sources)
            if done is not None:
                return _outcome(selection, done)
        raise Unavailable("Others are changing the same dead letters: try again.")

    def _earlier(self, tenant: TenantId, request: RequeueRequest) -> Sequence[Requeued]:
        """Return what a call with the same idempotency key did; raises IdempotencyKeyReused."""
        if request.idempotency_key is None:
            return ()
        earlier, digest = self._desk.requeued_under(tenant, request.idempotency_key)
        check_key_digest(digest, request.idempotency_digest)
        return earlier

    def _check_pool(self, pool: Pool) -> None:
        """Raise Conflict for a pool in which requests would wait for nobody."""
        if pool not in self._rules.closed:
            return
        setting = f"LOWTIDE_{pool.upper()}_REPLICAS"
        others = [f"requeue to {other}, or " for other in Pool if other not in self._rules.closed]
        raise Conflict(
            f"No worker of {pool} would ever run these requests, as {setting} is 0: "
            f"{''.join(others)}set it to 1 or more.",
            param="pool",
            code="pool_without_replicas",
        )

    def _sources(
        self, tenant: TenantId, letters: Mapping[BatchId, Sequence[LetterPlace]]
    ) -> Mapping[BatchId, Source]:
        sources = self._catalog.sources(tenant, list(letters))
        gone = [batch for batch in letters if not sources[batch].has_input]
        if gone:
            raise input_gone(gone[:5])
        return sources

    def _try(
        self,
        tenant: TenantId,
        request: RequeueRequest,
        letters: Mapping[BatchId, Sequence[LetterPlace]],
        sources: Mapping[BatchId, Source],
    ) -> list[Requeued] | None:
        """Requeue these letters; None when one is not open any more, or the key was used meanwhile."""
        moves: list[tuple[NewBatch, StoredFile, Sequence[LetterPlace]]] = []
        try:
            for batch, places in letters.items():
                file = self._write(tenant, sources[batch], places)
                moves.append((self._batch(tenant, sources[batch], file, request), file, places))
            events = [
                batch_event(self._new_id(), EventType.BATCH_CREATED, tenant, new.id, new.trace)
                for new, _, _ in moves
            ]
            done = self._desk.requeue(
                moves,
                events,
                actor=request.actor,
                key=request.idempotency_key,
                digest=request.idempotency_digest,
                policy=self._rules.admission,
            )
        except LowtideError as error:
            # Whether a commit whose answer was lost has happened, the strays tell, not we.
            if not isinstance(error, Unavailable):
                self._remove(tenant, moves)
            raise
        if not done:
            self._remove(tenant, moves)
            return None
        self._publisher.publish(events)
        return [Requeued(places[0].batch, new.id, len(places)) for new, _, places in moves]

    def _write(self, tenant: TenantId, source: Source, places: Sequence[LetterPlace]) -> StoredFile:
        """Store lines as a new input file; raises Conflict when their own is gone."""
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
        """Remove files that no batch will read."""
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

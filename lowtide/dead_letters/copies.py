"""Copies of requests of one batch in the input file of a new batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from lowtide.batches.model import NewBatch
from lowtide.core.durations import parse_window
from lowtide.core.ids import BatchId, FileId
from lowtide.core.pools import Pool
from lowtide.dead_letters.service import input_blocks
from lowtide.events.model import EventType, batch_event
from lowtide.files.model import FileStatus, Purpose, StoredFile, object_key
from lowtide.fleets.placement import Placement, prices_of, unplaced
from lowtide.objects.names import data_key_of, no_new_key, sealed_key
from lowtide.telemetry.tracing import UNTRACED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from lowtide.batches.admission import AdmissionPolicy
    from lowtide.core.ids import TenantId
    from lowtide.dead_letters.model import LetterLocation, Source
    from lowtide.events.model import Event
    from lowtide.files.store import FileStore
    from lowtide.fleets.model import Fleets
    from lowtide.objects.data_keys import WrappedKey
    from lowtide.objects.store import ObjectStore
    from lowtide.telemetry.tracing import Tracer


@dataclass(frozen=True, slots=True)
class CopyRules:
    """The limits of new batches, and their fleets; windows and file expiry in seconds.

    Without `admission` deadlines are not checked.
    """

    shortest_window: int
    longest_window: int
    file_expiry: int
    fleets: Fleets
    currency: str
    admission: AdmissionPolicy | None = None

    def placement(self, source: Source) -> Placement:
        """Return the fleet of a copy until it is split: that of its source, if it has one."""
        fleet = source.fleet and self.fleets.get(source.fleet)
        return Placement(fleet.name) if fleet else unplaced(self.fleets)

    def is_closed(self, source: Source, pool: Pool) -> bool:
        """Return whether the pool has no replicas, where a copy would never run."""
        fleet = self.fleets.get(self.placement(source).fleet or "")
        return fleet is not None and not fleet.pool(pool).max_replicas

    def window(self, text: str) -> timedelta:
        """Parse a completion window; raises InvalidRequest."""
        return parse_window(
            text,
            shortest=timedelta(seconds=self.shortest_window),
            longest=timedelta(seconds=self.longest_window),
        )


class Copies:
    """Write input files for new batches, and make their records.

    A file is recorded as an orphan until the transaction that records the new batch.
    """

    def __init__(
        self,
        files: FileStore,
        objects: ObjectStore,
        rules: CopyRules,
        *,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
        new_key: Callable[[TenantId, UUID], WrappedKey] = no_new_key,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self.rules = rules
        self.tracer = tracer
        self._files = files
        self._objects = objects
        self._new_id = new_id
        self._new_key = new_key
        self._clock = clock

    def write(
        self,
        tenant: TenantId,
        source: Source,
        pages: Iterable[Sequence[LetterLocation]],
        *,
        filename: str,
    ) -> StoredFile:
        """Write pages of requests to a new file; raises Conflict if their source file is gone.

        The copy of an encrypted file is encrypted, with a key of its own.
        """
        now = self._clock()
        file = FileId(self._new_id())
        is_sealed = data_key_of(source.input_key) is not None or self._files.is_sealed(tenant)
        data_key = self._new_key(tenant, file) if is_sealed else None
        key = sealed_key(None if data_key is None else data_key.id, object_key(file))
        sha256, size, lines = hashlib.sha256(), 0, 0
        self._files.expect(tenant, key, data_key=data_key)
        with self._objects.open_writer(key) as writer:
            for page in pages:
                lines += len(page)
                for block in input_blocks(self._objects, source, page):
                    sha256.update(block)
                    size += len(block)
                    writer.write(block)
        return StoredFile(
            id=file,
            tenant=tenant,
            purpose=Purpose.BATCH,
            filename=filename,
            size=size,
            lines=lines,
            sha256=sha256.digest(),
            object_key=key,
            status=FileStatus.PROCESSED,
            status_details=None,
            created_at=now,
            endpoint=source.endpoint,
            expires_at=now + timedelta(seconds=self.rules.file_expiry),
            trace=self.tracer.current(),
        )

    def batch(
        self,
        source: Source,
        file: StoredFile,
        *,
        window: str | None,
        metadata: Mapping[str, str],
        pool: Pool = Pool.SPOT,
        key: str | None = None,
        digest: bytes | None = None,
    ) -> NewBatch:
        """Return the record of a new batch of this file, which has its source's priority.

        Without a window it has that of its source, too."""
        now = self._clock()
        window = window or source.completion_window
        placement = self.rules.placement(source)
        id_ = BatchId(self._new_id())
        return NewBatch(
            id=id_,
            tenant=file.tenant,
            user=source.user,
            input_file=file.id,
            endpoint=source.endpoint,
            completion_window=window,
            created_at=now,
            deadline=now + self.rules.window(window),
            metadata=metadata,
            idempotency_key=key,
            prices=prices_of(self.rules.fleets, placement, self.rules.currency),
            placement=placement,
            idempotency_digest=digest,
            output_expires_after=source.output_expires_after,
            priority=source.priority,
            pool=pool,
            trace=self.tracer.current(),
            data_key=self._new_key(file.tenant, id_) if file.zero_retention else None,
        )

    def event(self, batch: NewBatch) -> Event:
        """Return the event that announces a new batch."""
        kind = EventType.BATCH_CREATED
        return batch_event(self._new_id(), kind, batch.tenant, batch.id, batch.trace)

    def remove(self, tenant: TenantId, files: Sequence[StoredFile]) -> None:
        """Delete files that no batch reads."""
        keys = [file.object_key for file in files]
        self._objects.delete(keys)
        self._files.removed(tenant, *keys)

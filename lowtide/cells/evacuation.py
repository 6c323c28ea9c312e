"""Evacuation: another cell's unfinished batches continue in this one, under their own ids.

Guarantees, for a bucket that both cells use:

- Each batch ends exactly once. Its fence (`lowtide.batches.ledger`) is created by the cell that ends
  it, before that is visible, or by this one, before it creates the batch. The other cell may come
  back at any point, or never have stopped: what it still computes of a batch that has moved is
  dropped, and its API does not know the batch any more once its next tick has.
- The evacuation may be killed at any point, and repeated; it may run in several cells, and several
  times in one. Those of several cells share the batches by their fences.
- A batch that is recorded was accepted, or its client never got an answer: a creation that is refused
  leaves no record. Of two records with one idempotency key, only the batch of the younger one can
  exist. If this cell has a batch under the key, it is of a client that has tried again meanwhile:
  the evacuated one gives up its key, and both run, as they would had the other cell come back.

Requests that had results in the other cell run again. An input that is imported is imported again.
A cancelled batch is cancelled here, without results.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.batches.model import NewBatch
from lowtide.buckets.model import Access, parse_folder_url, parse_object_url, require_access
from lowtide.core.errors import Conflict, InvalidRequest, LowtideError, NotFound
from lowtide.core.ids import BatchId, FileId, TenantId, format_batch_id
from lowtide.core.pools import Pool
from lowtide.files.index import FileSegment, index_key
from lowtide.files.model import FileStatus, Purpose, StoredFile, object_key
from lowtide.fleets.placement import place, prices_of, unplaced
from lowtide.objects.names import data_key_of
from lowtide.telemetry.tracing import parse_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lowtide.batches.ledger import Fence, Ledger, Record, RecordedFile
    from lowtide.buckets.store import BucketStore
    from lowtide.cells.evacuation_store import EvacuationStore
    from lowtide.files.store import FileStore
    from lowtide.fleets.model import Fleets
    from lowtide.fleets.placement import Placement
    from lowtide.objects.store import ObjectStore


_log = logging.getLogger(__name__)
AT_ONCE: Final = 8
"""Batches that one evacuation moves at the same time."""


class Outcome(StrEnum):
    """What became of a recorded batch. It was not moved, unless `evacuated` or `already_here`."""

    EVACUATED = "evacuated"
    ALREADY_HERE = "already_here"
    IN_ANOTHER_CELL = "in_another_cell"
    ENDED = "ended"
    SUPERSEDED = "superseded"
    ZERO_RETENTION = "zero_retention"
    MODEL_NOT_SERVED = "model_not_served"
    BUCKET_NOT_REGISTERED = "bucket_not_registered"
    TENANT_CONFLICT = "tenant_conflict"
    WRONG_REGION = "wrong_region"
    INPUT_MISSING = "input_missing"
    STILL_HERE = "still_here"
    FAILED = "failed"


LEFT: Final = frozenset(Outcome) - {
    Outcome.EVACUATED, Outcome.ALREADY_HERE, Outcome.IN_ANOTHER_CELL, Outcome.ENDED,
    Outcome.SUPERSEDED,
}  # fmt: skip
"""The outcomes of batches that wait for their cell, or for another evacuation."""


@dataclass(frozen=True, slots=True)
class Evacuated:
    """A recorded batch, its outcome, and the reason in words where the outcome needs one."""

    batch: BatchId
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """The cell that is evacuated: its number and name, and its ledger and objects."""

    number: int
    name: str
    ledger: Ledger
    objects: ObjectStore


class _Left(Exception):
    """A batch that is not moved."""

    def __init__(self, outcome: Outcome, reason: str = "") -> None:
        super().__init__()
        self.outcome = outcome
        self.reason = reason


class Evacuation:
    """Moves batches into this cell, whose ledger is `own`."""

    def __init__(
        self,
        source: Source,
        own: Ledger,
        store: EvacuationStore,
        files: FileStore,
        buckets: BucketStore,
        objects: ObjectStore,
        fleets: Fleets,
        currency: str,
        *,
        may_have: Callable[[str], bool] = lambda _: True,
        at_once: int = AT_ONCE,
    ) -> None:
        """`may_have` tells whether the data of a tenant of this name may be in this cell."""
        self._source = source
        self._may_have = may_have
        self._ledger = source.ledger
        self._own = own
        self._store = store
        self._files = files
        self._buckets = buckets
        self._objects = objects
        self._fleets = fleets
        self._currency = currency
        self._at_once = at_once

    def check(self) -> None:
        """Raise NotFound or Conflict unless each bucket is that of its cell."""
        owner = self._ledger.owner()
        if owner is None:
            raise NotFound("There is no ledger of a cell in this bucket: check --bucket.")
        if owner != self._source.number:
            raise Conflict(
                f"This is the bucket of cell {owner}, but {self._source.name} is cell "
                f"{self._source.number}."
            )
        mine = self._own.found()
        if mine != self._own.cell:
            raise Conflict(
                f"LOWTIDE_OBJECT_STORE_URL is the bucket of cell {mine}, but LOWTIDE_CELL is {self._own.cell}."
            )
        if owner == self._own.cell:
            raise Conflict(f"Cell {owner} cannot be evacuated into itself: run this in another.")

    def recorded(self) -> list[BatchId]:
        """Return the batches with a record, oldest first."""
        return sorted(each.batch for each in self._ledger.records())

    def run(
        self,
        batches: Sequence[BatchId],
        *,
        dry_run: bool = False,
        progress: Callable[[Evacuated], None] = lambda _: None,
    ) -> list[Evacuated]:
        """Move batches; return the outcome of each. With `dry_run`, change nothing."""
        results = []
        with ThreadPoolExecutor(self._at_once) as pool:
            records = dict(zip(batches, pool.map(self._ledger.record, batches), strict=True))
            superseded = _superseded(record for record in records.values() if record is not None)

            def move(batch: BatchId) -> Evacuated:
                return self._try(batch, records[batch], superseded, dry_run=dry_run)

            for result in pool.map(move, batches):
                results.append(result)
                progress(result)
        return results

    def _try(
        self,
        batch: BatchId,
        record: Record | None,
        superseded: Mapping[BatchId, BatchId],
        *,
        dry_run: bool,
    ) -> Evacuated:
        try:
            self._require_recorded(batch, record, superseded)
            if dry_run:
                return Evacuated(batch, Outcome.EVACUATED)
            self._move(batch)
        except _Left as left:
            if left.outcome is Outcome.ALREADY_HERE and not dry_run:
                self._ledger.forget_record(batch)
            return Evacuated(batch, left.outcome, left.reason)
        except LowtideError as error:
            _log.warning("batch.not_evacuated", extra={"reason": error.for_log})
            return Evacuated(batch, Outcome.FAILED, error.message)
        return Evacuated(batch, Outcome.EVACUATED)

    def _require_recorded(
        self, batch: BatchId, record: Record | None, superseded: Mapping[BatchId, BatchId]
    ) -> None:
        """Raise _Left unless the batch can be moved; it is not claimed yet."""
        if record is None:
            raise _Left(Outcome.ENDED)
        if batch in superseded:
            reason = f"{format_batch_id(superseded[batch])} was created instead"
            raise _Left(Outcome.SUPERSEDED, reason)
        fence = self._ledger.fence(batch)
        if fence is not None:
            self._require_mine(fence)
        self._plan(record)

    def _require_mine(self, fence: Fence) -> None:
        """Raise _Left if another cell ends the batch, or if it is here already."""
        if fence.cell == self._own.cell:
            if fence.is_moved:
                raise _Left(Outcome.ALREADY_HERE)
        elif fence.cell == self._ledger.owner():
            raise _Left(Outcome.ENDED, f"in cell {fence.cell}, or as soon as that is back")
        else:
            raise _Left(Outcome.IN_ANOTHER_CELL, f"cell {fence.cell}")

    def _move(self, batch: BatchId) -> None:
        """Claim a batch, create it here, and end its record in the other cell's ledger."""
        self._require_mine(self._ledger.claim(batch))
        # Only now is it certain that the batch did not end in its cell: that deletes the record.
        record = self._ledger.record(batch)
        if record is None:
            raise _Left(Outcome.ENDED)
        new = self._plan(record)
        self._store.ensure_tenant(new.tenant, record.tenant_name)
        file = self._copy(record)
        is_created = self._store.create(new, file, record.tokens, source=self._source.name)
        if record.is_cancelling:
            self._store.cancel(new)
        self._ledger.note_moved(batch)
        self._ledger.forget_record(batch)
        extra = {"batch_id": format_batch_id(batch), "cell": self._source.name}
        _log.info("batch.evacuated", extra=extra | {"is_new": is_created})

    def _plan(self, record: Record) -> NewBatch:
        """Return the batch as it is to be here; raises _Left if it has to stay."""
        batch, tenant = BatchId(record.batch), TenantId(record.tenant)
        if record.zero_retention or data_key_of(record.input_key) is not None:
            raise _Left(Outcome.ZERO_RETENTION, "its keys are in the database of its cell")
        if (fence := self._own.fence(batch)) is not None and fence.cell != self._own.cell:
            raise _Left(Outcome.STILL_HERE, "the next tick drops an older copy: repeat then")
        if not self._may_have(record.tenant_name):
            reason = f"the data of {record.tenant_name} must not be in the region of this cell"
            raise _Left(Outcome.WRONG_REGION, reason)
        known = self._store.tenant_of_name(record.tenant_name)
        if known not in (None, tenant) and not self._store.has_tenant(tenant):
            reason = f"another tenant here has the name {record.tenant_name!r}"
            raise _Left(Outcome.TENANT_CONFLICT, reason)
        placement = self._placement(record)
        self._check_buckets(record)
        if record.input_url is None:
            self._require_input(record)
        return NewBatch(
            id=batch,
            tenant=tenant,
            user=record.user,
            input_file=FileId(record.input_file),
            endpoint=record.endpoint,
            completion_window=record.completion_window,
            created_at=record.created_at,
            deadline=record.deadline,
            metadata=record.metadata,
            idempotency_key=record.idempotency_key,
            idempotency_digest=record.idempotency_digest,
            prices=prices_of(self._fleets, placement, self._currency),
            placement=placement,
            output_expires_after=record.output_expires_after,
            trace=parse_trace(record.traceparent, record.tracestate),
            pool=Pool(record.pool),
            input_url=record.input_url,
            output_url=record.output_url,
            priority=record.priority,
        )

    def _placement(self, record: Record) -> Placement:
        """Return the fleets of a batch; those of a file that is not read yet its split finds."""
        models = None if record.file is None else _stored(record, record.file).model_counts
        if models is None:
            return unplaced(self._fleets)
        try:
            return place(self._fleets, models, record.endpoint)
        except InvalidRequest as error:
            raise _Left(Outcome.MODEL_NOT_SERVED, error.message) from error

    def _check_buckets(self, record: Record) -> None:
        try:
            registered = self._buckets.of(TenantId(record.tenant))
            if record.input_url is not None:
                url = parse_object_url(record.input_url, "input_url")
                require_access(registered, url, Access.READ, "input_url")
            if record.output_url is not None:
                url = parse_folder_url(record.output_url, "output_url")
                require_access(registered, url, Access.WRITE, "output_url")
        except InvalidRequest as error:
            raise _Left(Outcome.BUCKET_NOT_REGISTERED, error.message) from error

    def _require_input(self, record: Record) -> None:
        try:
            self._source.objects.read_ranges(record.input_key, [(0, 1)])
        except NotFound as error:
            reason = "its input is not in the bucket (yet, if that is a replica)"
            raise _Left(Outcome.INPUT_MISSING, reason) from error

    def _copy(self, record: Record) -> StoredFile | None:
        """Copy the input and its index; return its record here, None for an import.

        The copies are orphans until the batch is created. Raises Unavailable, or NotFound.
        """
        if record.input_url is not None:
            return None
        tenant, file = TenantId(record.tenant), FileId(record.input_file)
        key = object_key(file)
        keys = {key: record.input_key}
        source_index = None if record.file is None else record.file.index_key
        if source_index is not None:
            keys[index_key(key)] = source_index
        if not self._store.has_file(tenant, file, key):
            self._files.expect(tenant, *keys)
            for target, origin in keys.items():
                self._copy_object(origin, target)
        if record.file is None:
            return None
        index = None if source_index is None else index_key(key)
        return replace(_stored(record, record.file), object_key=key, index_key=index)

    def _copy_object(self, origin: str, target: str) -> None:
        with self._objects.open_writer(target) as writer:
            for piece in self._source.objects.stream(origin):
                writer.write(piece)


def _stored(record: Record, file: RecordedFile) -> StoredFile:
    return StoredFile(
        id=FileId(record.input_file),
        tenant=TenantId(record.tenant),
        purpose=Purpose.BATCH,
        filename=file.filename,
        size=file.size,
        lines=file.lines,
        sha256=file.sha256,
        object_key=file.object_key,
        status=FileStatus(file.status),
        status_details=file.status_details,
        created_at=file.created_at,
        endpoint=file.endpoint,
        expires_at=file.expires_at,
        model=file.model,
        index_key=file.index_key,
        segments=None if file.segments is None else [FileSegment(*each) for each in file.segments],
        models=None if file.models is None else tuple(file.models),
    )


def _superseded(records: Iterable[Record]) -> dict[BatchId, BatchId]:
    """Return the batches whose creation was never committed, and those under their keys since."""
    newest: dict[tuple[object, str], Record] = {}
    older: list[Record] = []
    for record in records:
        if record.idempotency_key is None:
            continue
        key = (record.tenant, record.idempotency_key)
        before = newest.get(key)
        if before is not None:
            older.append(min(before, record, key=lambda each: each.recorded_at))
        if before is None or before.recorded_at < record.recorded_at:
            newest[key] = record
    return {
        BatchId(record.batch): BatchId(newest[record.tenant, record.idempotency_key or ""].batch)
        for record in older
    }

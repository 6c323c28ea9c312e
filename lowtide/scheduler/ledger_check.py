"""Keeping the ledger of a cell and its database in line, and dropping batches that have moved.

Most passes find nothing: records follow their batches. The rest is what a crash leaves between the
database and the bucket, what was there before the cell had a number, and the return of a cell that
was evacuated.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from lowtide.core.errors import Unavailable
from lowtide.core.ids import BatchId, TenantId, derived_file_id, format_batch_id
from lowtide.database.connections import begin
from lowtide.files.model import object_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from sqlalchemy import Engine

    from lowtide.batches.ledger import Ledger
    from lowtide.batches.ledger_keeper import LedgerKeeper
    from lowtide.retention.store import RetentionStore


_log = logging.getLogger(__name__)
CHECK_SECONDS: Final = 60.0
"""The time between two passes of one process; its first pass is in its first tick."""
FENCE_KEPT: Final = timedelta(hours=1)
"""The time for which the fence of an ended batch stays.

A replica of the bucket may get the end of a record earlier than the fence, by up to this time.
"""
CREATION: Final = timedelta(minutes=10)
"""The time after which a record without a batch is left by a crash: no creation takes as long."""
_UNFINISHED = text("""
SELECT id FROM batches WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
""")
_KNOWN = text("""
SELECT id, status IN ('completed', 'failed', 'expired', 'cancelled') AS has_ended FROM batches
WHERE id = ANY(cast(:batches AS uuid[]))
""")
# The lock order is that of a cancellation: the batch first, then what waits and runs.
_LOCK = text("""
SELECT tenant_id FROM batches
WHERE id = :batch AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling') FOR UPDATE
""")
_DROP: Final = [
    text(f"DELETE FROM {table} WHERE batch_id = :batch")  # noqa: S608 - constants of ours
    for table in (
        "queued_runs", "claimed_runs", "segments", "tallies", "sampled_work", "batch_terms",
        "batch_fleets", "search_backlog", "erasures",
    )
]  # fmt: skip
_DROP_EVENTS = text("DELETE FROM outbox WHERE subject = :subject")
_DROP_KEY = text("DELETE FROM data_keys WHERE id = :batch")
_DROP_OBJECTS = text("""
UPDATE orphan_objects SET due_at = now()
WHERE starts_with(object_key, :output) OR starts_with(object_key, :error)
  OR starts_with(object_key, :answers)
""")
_DROP_BATCH = text("DELETE FROM batches WHERE id = :batch")
_OWNER = text("SELECT tenant_id FROM requests WHERE batch_id = :batch LIMIT 1")
_SET: Final = 1000


class LedgerStore:
    """What the database knows of the batches in the ledger, and the removal of those that moved."""

    def __init__(self, engine: Engine, retention: RetentionStore, keeper: LedgerKeeper) -> None:
        self._engine = engine
        self._retention = retention
        self._keeper = keeper

    def unfinished(self) -> set[BatchId]:
        """Return the batches that have not ended."""
        with begin(self._engine) as connection:
            return {BatchId(id_) for id_ in connection.execute(_UNFINISHED).scalars()}

    def known(self, batches: Collection[BatchId]) -> dict[BatchId, bool]:
        """Return those of the batches that exist, and whether each has ended."""
        with begin(self._engine) as connection:
            rows = connection.execute(_KNOWN, {"batches": list(batches)})
            return {BatchId(row.id): row.has_ended for row in rows}

    def record(self, batch: BatchId) -> None:
        """Record a batch in the ledger, unless it has ended."""
        with begin(self._engine) as connection:
            self._keeper.record(connection, [batch])

    def drop(self, batch: BatchId) -> None:
        """Remove an unfinished batch with its requests and results, and what is written of its files.

        The first transaction ends all work on it, and hides it. To be repeated after a crash.
        """
        with begin(self._engine) as connection:
            tenant = connection.execute(_LOCK, {"batch": batch}).scalar_one_or_none()
            if tenant is None:
                tenant = connection.execute(_OWNER, {"batch": batch}).scalar_one_or_none()
            else:
                for statement in _DROP:
                    connection.execute(statement, {"batch": batch})
                connection.execute(_DROP_EVENTS, {"subject": format_batch_id(batch)})
                connection.execute(_DROP_KEY, {"batch": batch})
                connection.execute(_DROP_OBJECTS, _objects_of(batch))
                connection.execute(_DROP_BATCH, {"batch": batch})
        line: int | None = 0
        while tenant is not None and line is not None:
            line = self._retention.delete_requests(batch, TenantId(tenant), line, _SET)
        event: int | None = 0
        while event is not None:
            event = self._retention.delete_events(batch, event, _SET)


class LedgerCheck:
    """Compares the ledger with the database. Every step is safe to repeat, also concurrently."""

    def __init__(
        self,
        ledger: Ledger,
        store: LedgerStore,
        *,
        timer: Callable[[], float],
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._timer = timer
        self._clock = clock
        self._due = timer()
        self._is_found = False

    def run(self) -> None:
        """Run a pass if one is due; raises Unavailable."""
        if self._timer() < self._due:
            return
        self._find()
        self._pass()
        self._due = self._timer() + CHECK_SECONDS

    def _find(self) -> None:
        if self._is_found:
            return
        owner = self._ledger.found()
        if owner != self._ledger.cell:
            _log.error("ledger.of_another_cell", extra={"cell": owner})
            raise Unavailable(f"The bucket is that of cell {owner}: each cell needs its own.")
        self._is_found = True

    def _pass(self) -> None:
        # In this order: of a batch that is created meanwhile, only the record may be seen.
        unfinished = self._store.unfinished()
        records = {each.batch: each.at for each in self._ledger.records()}
        fences = {each.batch: each.at for each in self._ledger.fences()}
        others = (records.keys() | fences.keys()) - unfinished
        has_ended = self._store.known(others)
        for batch in sorted(unfinished):
            if batch in fences or batch not in records:
                self._check_unfinished(batch)
        for batch in sorted(others):
            if not has_ended.get(batch, True):
                continue
            if batch in records:
                is_young = self._clock() - records[batch] <= CREATION
                if batch in has_ended or not is_young:
                    self._end_record(batch, has_ended=batch in has_ended)
            elif self._clock() - fences[batch] > FENCE_KEPT:
                self._end_fence(batch, is_unknown=batch not in has_ended)

    def _check_unfinished(self, batch: BatchId) -> None:
        """Drop a batch that has moved; record one that has neither record nor fence.

        It is of before the cell had its number, or another bucket was its cell's. While an
        evacuation is moving a batch, it stays: if the evacuation was killed, it has to be repeated.
        """
        fence = self._ledger.fence(batch)
        if fence is None:
            self._store.record(batch)
        elif fence.cell != self._ledger.cell:
            extra = {"batch_id": format_batch_id(batch), "cell": fence.cell}
            if not fence.is_moved:
                _log.warning("batch.is_moving", extra=extra)
                return
            self._drop(batch)
            _log.info("batch.moved", extra=extra)

    def _end_record(self, batch: BatchId, *, has_ended: bool) -> None:
        """Remove the record of a batch that has ended, or of which there is none.

        The fence comes first, as at any end: an evacuation may be reading the record.
        """
        fence = self._ledger.claim(batch)
        extra = {"batch_id": format_batch_id(batch), "cell": fence.cell}
        if fence.cell == self._ledger.cell:
            self._ledger.forget_record(batch)
        elif has_ended:
            # A replica of the bucket was evacuated that did not have the fence yet.
            _log.error("batch.ended_twice", extra=extra)
            self._ledger.forget_record(batch)
        elif fence.is_moved:
            self._drop(batch)

    def _end_fence(self, batch: BatchId, *, is_unknown: bool) -> None:
        """Remove a fence that nothing needs any more, and what a killed drop left."""
        fence = self._ledger.fence(batch)
        if fence is not None and fence.cell != self._ledger.cell and is_unknown:
            self._store.drop(batch)
        self._ledger.forget_fence(batch)

    def _drop(self, batch: BatchId) -> None:
        self._store.drop(batch)
        self._ledger.forget_record(batch)
        self._ledger.forget_fence(batch)


def _objects_of(batch: BatchId) -> dict[str, str]:
    """Return the first characters of the keys of what a batch's segments write."""
    files = {role: object_key(derived_file_id(batch, role)) for role in ("output", "error")}
    return files | {"answers": f"answers/{batch.hex}/"}

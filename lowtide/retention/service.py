"""What a tick does for retention, in bounded time and bounded statements."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client import Gauge

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.core.ids import BatchId, TenantId
    from lowtide.retention.partitions import PartitionStore
    from lowtide.retention.store import Backlog, RetentionStore


_log = logging.getLogger(__name__)
_SET: Final = 200
"""Batches per statement."""
_SECONDS: Final = 1.0
"""Max time of each step in one tick."""
_FEWEST_LINES, _MOST_LINES = 100, 5000
_SHORT, _LONG = 0.02, 0.05
_PATIENCE: Final = 2 * 86400.0


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """Seconds after a batch's end until its data goes, and until its record goes."""

    data_kept: float
    records_kept: float


class Retention:
    """Ends data and records. Every step is safe to repeat, at any time, also concurrently.

    The data of a batch ends at once for all readers. It is deleted with its partition, as soon as
    that holds no other batch's data; after two days in vain, row by row.
    """

    def __init__(
        self, partitions: PartitionStore, store: RetentionStore, rules: RetentionRules
    ) -> None:
        self._partitions = partitions
        self._store = store
        self._rules = rules
        self._lines = _FEWEST_LINES

    def make_partitions(self) -> None:
        """Make the partitions of the coming days."""
        made = self._partitions.make_coming()
        if made:
            _log.info("partitions.made", extra={"partitions": made})

    def fold(self) -> None:
        """Fold the tallies of batches that have ended, and the usage of days that have."""
        _repeat(lambda: self._store.fold(_SET))
        _repeat(lambda: self._store.fold_usage(_SET))

    def end_data(self) -> None:
        """End the data of batches past retention, and drop or delete what has ended."""
        ended = _repeat(lambda: self._store.end(self._rules.data_kept, _SET))
        dropped = self._drop()
        gaps = self._partitions.gaps()
        _repeat(lambda: self._store.note_deleted(gaps, _SET))
        deleted = self._delete_overdue()
        if ended or dropped or deleted:
            fields = {"ended": ended, "dropped": dropped, "deleted": deleted}
            _log.info("data.ended", extra=fields)

    def end_records(self) -> None:
        """Delete the records of batches past retention, and tenants' usage of that time."""
        _repeat(lambda: self._store.delete_usage(self._rules.records_kept, _SET))
        deleted = _repeat(lambda: self._store.delete_records(self._rules.records_kept, _SET))
        if deleted:
            _log.info("records.ended", extra={"batches": deleted})

    def measure(self) -> None:
        """Publish the metrics."""
        days, waiting = self._partitions.sizes(self._partitions.ended())
        measured(days, waiting, self._store.backlog(self._rules.data_kept, _SET))

    def _drop(self) -> int:
        end = time.monotonic() + _SECONDS
        dropped = 0
        for name in self._partitions.ended():
            if time.monotonic() >= end:
                break
            dropped += self._partitions.drop(name)
        return dropped

    def _delete_overdue(self) -> int:
        """Delete the rows of batches whose partitions still hold others; return how many batches."""
        end = time.monotonic() + _SECONDS
        deleted = 0
        for batch, tenant in self._store.overdue(_PATIENCE, _SET):
            if not self._delete(batch, tenant, end):
                break
            self._store.note_empty(batch)
            deleted += 1
        return deleted

    def _delete(self, batch: BatchId, tenant: TenantId, end: float) -> bool:
        """Delete a batch's rows; return False if there was no time for all of them."""
        line: int | None = 0
        while line is not None:
            if time.monotonic() >= end:
                return False
            line = self._adapting(self._store.delete_requests, batch, tenant, line)
        event: int | None = 0
        while event is not None:
            if time.monotonic() >= end:
                return False
            event = self._store.delete_events(batch, event, _FEWEST_LINES)
        return True

    def _adapting(
        self,
        delete: Callable[[BatchId, TenantId, int, int], int | None],
        batch: BatchId,
        tenant: TenantId,
        after: int,
    ) -> int | None:
        """Delete a set of requests, and adapt the size of the next to how long it took."""
        began = time.monotonic()
        last = delete(batch, tenant, after, self._lines)
        seconds = time.monotonic() - began
        if seconds > _LONG:
            self._lines = max(_FEWEST_LINES, self._lines // 2)
        elif seconds < _SHORT:
            self._lines = min(_MOST_LINES, self._lines * 2)
        return last


def _repeat(step: Callable[[], int]) -> int:
    """Repeat a step until it does less than a set, or time is up; return how much it did."""
    end = time.monotonic() + _SECONDS
    total = 0
    while True:
        done = step()
        total += done
        if done < _SET or time.monotonic() >= end:
            return total


_DAYS = Gauge("partition_days", "Days with partitions of the tables of requests.")
_WAITING = Gauge(
    "retention_waiting_bytes", "Bytes of partitions without data, which a tick could not drop yet."
)
_OVERDUE = Gauge(
    "retention_overdue_batches", "Batches past retention whose data is still in the database."
)
_OLDEST = Gauge(
    "retention_oldest_overdue_seconds",
    "Time since the end of the retention of the oldest data still in the database.",
)


def measured(days: int, waiting: int, backlog: Backlog) -> None:
    """Publish what is past retention."""
    _DAYS.set(days)
    _WAITING.set(waiting)
    _OVERDUE.set(backlog.batches)
    _OLDEST.set(backlog.seconds)

"""The failed requests of a batch, and the records of a rerun.

A rerun ends the open dead letters among its requests under the lock that requeueing takes, so that
each dead letter runs again exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from lowtide.batches.ledger_keeper import NO_LEDGER
from lowtide.batches.model import BatchStatus, data_ended
from lowtide.batches.store import insert_batch, size_of
from lowtide.core.errors import NotFound
from lowtide.core.ids import format_batch_id
from lowtide.database.connections import acting_for
from lowtide.dead_letters.model import LetterLocation
from lowtide.dead_letters.requeue_store import lock_letters
from lowtide.events.outbox import add_event
from lowtide.files.store import add_expected_file
from lowtide.tenants.audit import note

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy import Engine

    from lowtide.batches.admission import AdmissionPolicy
    from lowtide.batches.ledger_keeper import LedgerKeeper
    from lowtide.batches.model import NewBatch
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.events.model import Event
    from lowtide.files.model import StoredFile


class Failure(StrEnum):
    """The outcomes of requests that did not complete."""

    FAILED = "Failed"
    EXPIRED = "Expired"
    CANCELLED = "Cancelled"


DROPPED: Final = {
    Failure.EXPIRED: BatchStatus.EXPIRED,
    Failure.CANCELLED: BatchStatus.CANCELLED,
}
"""The status of batches whose requests without a result have this outcome."""


@dataclass(frozen=True, slots=True)
class FailedRequests:
    """The failed requests of a batch in `status` that a rerun takes, by outcome.

    `letters` of those that failed are open dead letters; `handled` dead letters were requeued or
    discarded, and are not among them.
    """

    status: BatchStatus
    counts: dict[Failure, int]
    letters: int
    handled: int


@dataclass(frozen=True, slots=True)
class FailedPage:
    """Failed requests in input order; `letters` of them are open dead letters."""

    places: Sequence[LetterLocation]
    letters: int

    @property
    def lines(self) -> tuple[int, int]:
        """The first and the last line."""
        return self.places[0].line, self.places[-1].line


_COUNT = text("""
SELECT b.status, b.total, b.data_ended_at,
  (SELECT count(*) FROM results WHERE batch_id = b.id) AS ended,
  (SELECT count(*) FROM results WHERE batch_id = b.id AND NOT succeeded) AS failed,
  (SELECT count(*) FROM dead_letters WHERE batch_id = b.id AND state = 'open') AS letters,
  (SELECT count(*) FROM dead_letters WHERE batch_id = b.id AND state <> 'open') AS handled
FROM batches b WHERE b.tenant_id = :tenant AND b.id = :batch
""")
# Requests dropped by a cancellation or at the deadline are only in `requests`. OFFSET 0 and scalar
# subqueries keep each join a lookup by key, whatever the statistics.
PAGE = """
SELECT p.line, r.start, r.length, r.checksum, p.is_letter FROM (
  SELECT line, is_letter FROM (
    (SELECT f.line, d.state IS NOT NULL AS is_letter FROM results f
      LEFT JOIN LATERAL (
        SELECT state FROM dead_letters WHERE batch_id = f.batch_id AND line = f.line OFFSET 0) d ON true
      WHERE f.batch_id = :batch AND f.line > :after AND :failed AND NOT f.succeeded
        AND coalesce(d.state, 'open') = 'open'
      ORDER BY f.line LIMIT :limit)
    UNION ALL
    (SELECT q.line, false FROM requests q
      WHERE q.batch_id = :batch AND q.line > :after
        AND EXISTS (SELECT 1 FROM batches WHERE id = :batch AND status = ANY(cast(:dropped AS text[])))
        AND (SELECT 1 FROM results WHERE batch_id = :batch AND line = q.line) IS NULL
      ORDER BY q.line LIMIT :limit)
  ) either ORDER BY line LIMIT :limit
) p
CROSS JOIN LATERAL (
  SELECT start, length, checksum FROM requests WHERE batch_id = :batch AND line = p.line OFFSET 0) r
ORDER BY p.line
"""
_PAGE = text(PAGE)
_END = text("""
UPDATE dead_letters SET state = 'requeued', requeued_as = :target, ended_at = now(), actor = :actor
WHERE tenant_id = :tenant AND batch_id = :batch AND line BETWEEN :first AND :last AND state = 'open'
""")
_DATA_ENDED = text("SELECT data_ended_at FROM batches WHERE tenant_id = :tenant AND id = :batch")
_LIMIT: Final = 1000


class RerunStore:
    """Read the failed requests of a batch, and record reruns."""

    def __init__(self, engine: Engine, *, ledger: LedgerKeeper = NO_LEDGER) -> None:
        self._engine = engine
        self._ledger = ledger

    def count(self, tenant: TenantId, batch: BatchId) -> FailedRequests:
        """Count the failed requests of a batch; raises NotFound."""
        with acting_for(self._engine, tenant) as connection:
            row = connection.execute(_COUNT, {"tenant": tenant, "batch": batch}).one_or_none()
        if row is None:
            name = format_batch_id(batch)
            raise NotFound(f"Batch {name!r} not found: check the id.", param="batch_id")
        if row.data_ended_at is not None:
            raise data_ended(batch, row.data_ended_at)
        status = BatchStatus(row.status)
        counts = {Failure.FAILED: row.failed - row.handled}
        counts |= {
            failure: row.total - row.ended if status is ending else 0
            for failure, ending in DROPPED.items()
        }
        return FailedRequests(status, counts, row.letters, row.handled)

    def require_data(self, tenant: TenantId, batch: BatchId) -> None:
        """Raise NotFound if the data of a batch has ended."""
        with acting_for(self._engine, tenant) as connection:
            ended_at = connection.execute(
                _DATA_ENDED, {"tenant": tenant, "batch": batch}
            ).scalar_one_or_none()
        if ended_at is not None:
            raise data_ended(batch, ended_at)

    def pages(
        self, tenant: TenantId, batch: BatchId, failures: Collection[Failure]
    ) -> Iterator[FailedPage]:
        """Yield the failed requests in pages, one transaction each.

        Dead letters that were requeued or discarded are not among them.
        """
        parameters = {
            "batch": batch,
            "failed": Failure.FAILED in failures,
            "dropped": [status for failure, status in DROPPED.items() if failure in failures],
            "limit": _LIMIT,
        }
        after = 0
        while True:
            with acting_for(self._engine, tenant) as connection:
                rows = connection.execute(_PAGE, parameters | {"after": after}).all()
            if not rows:
                return
            places = [LetterLocation(batch, *row[:4]) for row in rows]
            yield FailedPage(places, sum(row.is_letter for row in rows))
            after = places[-1].line

    def note_download(self, tenant: TenantId, actor: str, subject: str) -> None:
        """Record a download in the audit log."""
        with acting_for(self._engine, tenant) as connection:
            note(connection, tenant, actor, "batches.download", [subject])

    def record(
        self,
        source: BatchId,
        letters: Sequence[tuple[int, int, int]],
        batch: NewBatch,
        file: StoredFile,
        event: Event,
        *,
        actor: str,
        policy: AdmissionPolicy | None,
    ) -> bool:
        """Record a new batch of failed requests of `source`, and end the dead letters among them.

        `letters` has ranges of lines and the number of open letters in each. Returns False without
        a change if one is no longer open, or if the idempotency key has been used. Raises the
        errors of `insert_batch`.
        """
        with acting_for(self._engine, batch.tenant) as connection:
            # The lock order is letters, batches, as in a requeue.
            lock_letters(connection, source)
            for first, last, count in letters:
                parameters = {
                    "tenant": batch.tenant,
                    "batch": source,
                    "target": batch.id,
                    "actor": actor,
                    "first": first,
                    "last": last,
                }
                if connection.execute(_END, parameters).rowcount != count:
                    connection.rollback()
                    return False
            add_expected_file(connection, file)
            if not insert_batch(connection, batch, file.object_key, size_of(file), policy):
                connection.rollback()
                return False
            subject = (
                f"{format_batch_id(source)}: {file.lines} requests as {format_batch_id(batch.id)}"
            )
            note(connection, batch.tenant, actor, "batches.rerun", [subject])
            add_event(connection, event)
            self._ledger.record(connection, [batch.id])
        return True

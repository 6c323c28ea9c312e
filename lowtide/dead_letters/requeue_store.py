"""Selecting, requeueing and discarding dead letters.

A transaction that ends letters takes the advisory lock of each batch first, in order of batches: of
two calls for the same letters, the second waits and finds them ended. Letters are passed as a batch
and an array of lines, which any plan looks up in one pass, regardless of statistics.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.batches.ledger_keeper import NO_LEDGER
from lowtide.batches.request_store import WITH_DATA
from lowtide.batches.store import insert_batch, size_of
from lowtide.core.ids import BatchId, format_batch_id
from lowtide.database.connections import acting_for
from lowtide.dead_letters.model import (
    LetterFilter,
    LetterId,
    LetterLocation,
    LetterState,
    Requeued,
    Selection,
    by_batch,
)
from lowtide.dead_letters.store import MATCHES, letter_not_found, matches
from lowtide.events.outbox import add_event
from lowtide.files.store import add_expected_file
from lowtide.tenants.audit import note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.batches.admission import AdmissionPolicy
    from lowtide.batches.ledger_keeper import LedgerKeeper
    from lowtide.batches.model import NewBatch
    from lowtide.core.ids import TenantId
    from lowtide.events.model import Event
    from lowtide.files.model import StoredFile


NAMED = f"""
SELECT d.line, d.state, d.requeued_as, r.start, r.length, r.checksum
FROM (
  SELECT batch_id, line, state, requeued_as FROM dead_letters
  WHERE tenant_id = :tenant AND batch_id = :batch AND line = ANY(cast(:lines AS integer[]))
    AND {WITH_DATA}
) d
CROSS JOIN LATERAL (
  SELECT start, length, checksum FROM requests WHERE batch_id = d.batch_id AND line = d.line OFFSET 0) r
"""  # noqa: S608
_NAMED = text(NAMED)
MATCHING = f"""
SELECT d.batch_id, d.line, r.start, r.length, r.checksum
FROM (
  SELECT at, batch_id, line FROM dead_letters
  WHERE {MATCHES}
  ORDER BY at, batch_id, line LIMIT :most
) d
CROSS JOIN LATERAL (
  SELECT start, length, checksum FROM requests WHERE batch_id = d.batch_id AND line = d.line OFFSET 0) r
"""  # noqa: S608
_MATCHING = text(MATCHING)
_COUNT = text(f"SELECT count(*) FROM dead_letters WHERE {MATCHES}")  # noqa: S608
# OFFSET 0 keeps the index of keys: for the grouping, the planner would scan one ordered by batch.
UNDER_KEY = """
SELECT batch_id, requeued_as, count(*) AS letters, (array_agg(requeue_digest))[1] AS digest FROM (
  SELECT batch_id, requeued_as, requeue_digest FROM dead_letters
  WHERE tenant_id = :tenant AND requeue_key = :key OFFSET 0
) d GROUP BY batch_id, requeued_as
"""
_UNDER_KEY = text(UNDER_KEY)
END = """
UPDATE dead_letters SET state = :state, requeued_as = cast(:target AS uuid), ended_at = now(),
  actor = :actor, requeue_key = cast(:key AS text), requeue_digest = cast(:digest AS bytea)
WHERE tenant_id = :tenant AND batch_id = :batch AND line = ANY(cast(:lines AS integer[]))
  AND state = 'open'
"""
_END = text(END)
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")

# Keeps every statement well below the connection's timeout.
_BLOCK_LINES = 5000


class RequeueStore:
    """Select, requeue and discard dead letters."""

    def __init__(self, engine: Engine, *, ledger: LedgerKeeper = NO_LEDGER) -> None:
        self._engine = engine
        self._ledger = ledger

    def named(self, tenant: TenantId, letters: Sequence[LetterId]) -> Selection:
        """Select letters by id; raises NotFound for an unknown one."""
        builder = _SelectionBuilder()
        with acting_for(self._engine, tenant) as connection:
            for batch, group in groupby(sorted(letters), key=attrgetter("batch")):
                lines = [letter.line for letter in group]
                parameters = {"tenant": tenant, "batch": batch, "lines": lines}
                rows = connection.execute(_NAMED, parameters).all()
                unknown = set(lines).difference(row.line for row in rows)
                if unknown:
                    raise letter_not_found(connection, LetterId(batch, min(unknown)), "ids")
                for row in rows:
                    builder.add(batch, row)
        return builder.selection()

    def matching(self, tenant: TenantId, letter_filter: LetterFilter, *, limit: int) -> Selection:
        """Select the oldest `limit` open letters that match a filter, and count the rest."""
        open_filter = replace(letter_filter, state=LetterState.OPEN)
        parameters = matches(tenant, open_filter)
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_MATCHING, parameters | {"most": limit}).all()
            count = len(rows)
            if count == limit:
                count = connection.execute(_COUNT, parameters).scalar_one()
        places = [LetterLocation(BatchId(row[0]), *row[1:]) for row in rows]
        return Selection(_in_order(places), remaining=max(0, count - len(places)))

    def requeued_under(self, tenant: TenantId, key: str) -> tuple[Sequence[Requeued], bytes | None]:
        """Return the letters requeued under this idempotency key, and the digest of that body."""
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_UNDER_KEY, {"tenant": tenant, "key": key}).all()
        counts = {(row.batch_id, row.requeued_as): row.letters for row in rows}
        earlier = [
            Requeued(BatchId(source), BatchId(batch), letters)
            for (source, batch), letters in sorted(counts.items())
        ]
        return earlier, next((row.digest for row in rows), None)

    def requeue(
        self,
        moves: Sequence[tuple[NewBatch, StoredFile, Sequence[LetterLocation]]],
        events: Sequence[Event],
        *,
        actor: str,
        key: str | None,
        digest: bytes | None = None,
        policy: AdmissionPolicy | None = None,
    ) -> bool:
        """Record files, batches and events, and mark the letters, in one transaction.

        Return False and record nothing if a letter is no longer open or the key has been used.
        Raises the errors of `insert_batch`.
        """
        tenant = moves[0][0].tenant
        with acting_for(self._engine, tenant) as connection:
            if key is not None and _is_key_used(connection, tenant, key):
                return False
            # The lock order is letters, batches: creations wait for each other, and must not delay
            # transactions that wait for letters.
            for batch, _, places in moves:
                source = places[0].batch
                lines = [place.line for place in places]
                count = _mark(
                    connection,
                    tenant,
                    source,
                    lines,
                    actor,
                    target=batch.id,
                    key=key,
                    digest=digest,
                )
                if count != len(places):
                    connection.rollback()
                    return False
            for batch, file, places in moves:
                add_expected_file(connection, file)
                insert_batch(connection, batch, file.object_key, size_of(file), policy)
                old, new = format_batch_id(places[0].batch), format_batch_id(batch.id)
                subject = f"{old}: {len(places)} requests as {new} on {batch.pool}"
                note(connection, tenant, actor, "dead_letters.requeue", [subject])
            for event in events:
                add_event(connection, event)
            self._ledger.record(connection, [batch.id for batch, _, _ in moves])
        return True

    def discard(self, tenant: TenantId, letters: Sequence[LetterLocation], *, actor: str) -> int:
        """Mark letters as discarded; return how many were still open."""
        changed = 0
        with acting_for(self._engine, tenant) as connection:
            for batch, places in sorted(by_batch(letters).items()):
                lines = [place.line for place in places]
                count = _mark(connection, tenant, batch, lines, actor)
                if count:
                    subject = f"{format_batch_id(batch)}: {count} requests"
                    note(connection, tenant, actor, "dead_letters.discard", [subject])
                changed += count
        return changed


class _SelectionBuilder:
    """A Selection of letters by id, built row by row."""

    def __init__(self) -> None:
        self._open: list[LetterLocation] = []
        self._requeued = Counter[tuple[BatchId, BatchId]]()
        self._discarded = 0

    def add(self, batch: BatchId, row: Any) -> None:
        state = LetterState(row.state)
        if state is LetterState.OPEN:
            self._open.append(LetterLocation(batch, row.line, row.start, row.length, row.checksum))
        elif state is LetterState.REQUEUED:
            self._requeued[batch, BatchId(row.requeued_as)] += 1
        else:
            self._discarded += 1

    def selection(self) -> Selection:
        earlier = (
            Requeued(source, batch, letters)
            for (source, batch), letters in sorted(self._requeued.items())
        )
        return Selection(_in_order(self._open), tuple(earlier), self._discarded)


def _is_key_used(connection: Connection, tenant: TenantId, key: str) -> bool:
    """Lock an idempotency key, and return True if letters were requeued under it."""
    connection.execute(_LOCK, {"key": f"requeue {tenant} {key}"})
    return connection.execute(_UNDER_KEY, {"tenant": tenant, "key": key}).first() is not None


def lock_letters(connection: Connection, batch: BatchId) -> None:
    """Make other transactions that end letters of this batch wait for this one."""
    connection.execute(_LOCK, {"key": f"dead letters {batch}"})


def _mark(
    connection: Connection,
    tenant: TenantId,
    source: BatchId,
    lines: Sequence[int],
    actor: str,
    *,
    target: BatchId | None = None,
    key: str | None = None,
    digest: bytes | None = None,
) -> int:
    """Mark open letters of a batch as requeued into `target`, or as discarded; return how many."""
    lock_letters(connection, source)
    state = LetterState.DISCARDED if target is None else LetterState.REQUEUED
    parameters = {
        "tenant": tenant,
        "batch": source,
        "state": state.value,
        "target": target,
        "actor": actor,
        "key": key,
        "digest": digest,
    }
    count = 0
    for start in range(0, len(lines), _BLOCK_LINES):
        block = {"lines": list(lines[start : start + _BLOCK_LINES])}
        count += connection.execute(_END, parameters | block).rowcount
    return count


def _in_order(places: list[LetterLocation]) -> tuple[LetterLocation, ...]:
    return tuple(sorted(places, key=lambda place: (place.batch, place.line)))

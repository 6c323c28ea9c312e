"""Dealing with dead letters: choosing, requeueing and discarding them.

Two calls that want the same letters lock them in the same order, by batch and line; the second finds
them ended.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.domain.dead_letters import (
    LetterFilter,
    LetterId,
    LetterPlace,
    LetterState,
    Requeued,
    Selection,
)
from lowtide.domain.ids import BatchId, format_batch_id
from lowtide.postgres.audit import note
from lowtide.postgres.batches import insert_batch
from lowtide.postgres.connections import acting_for
from lowtide.postgres.dead_letters import MATCHES, letter_not_found, matches
from lowtide.postgres.files import add_expected_file
from lowtide.postgres.outbox import add_event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.domain.batches import NewBatch
    from lowtide.domain.events import Event
    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import TenantId

NAMED = """
SELECT g.batch, g.line, d.state, d.requeued_as, r.start, r.length
FROM unnest(cast(:batches AS uuid[]), cast(:lines AS integer[])) AS g (batch, line)
LEFT JOIN LATERAL (
  SELECT state, requeued_as FROM dead_letters
  WHERE batch_id = g.batch AND line = g.line AND tenant_id = :tenant OFFSET 0) d ON true
LEFT JOIN LATERAL (
  SELECT start, length FROM requests
  WHERE batch_id = g.batch AND line = g.line AND tenant_id = :tenant OFFSET 0) r ON true
"""
_NAMED = text(NAMED)
MATCHING = f"""
SELECT d.batch_id, d.line, r.start, r.length
FROM (
  SELECT at, batch_id, line FROM dead_letters
  WHERE {MATCHES}
  ORDER BY at, batch_id, line LIMIT :most
) d
CROSS JOIN LATERAL (
  SELECT start, length FROM requests WHERE batch_id = d.batch_id AND line = d.line OFFSET 0) r
"""  # noqa: S608
_MATCHING = text(MATCHING)
_COUNT = text(f"SELECT count(*) FROM dead_letters WHERE {MATCHES}")  # noqa: S608
# OFFSET 0 keeps the index of keys: for the grouping, one that is ordered by batch would be walked.
UNDER_KEY = """
SELECT batch_id, requeued_as, count(*) AS letters FROM (
  SELECT batch_id, requeued_as FROM dead_letters
  WHERE tenant_id = :tenant AND requeue_key = :key OFFSET 0
) d GROUP BY batch_id, requeued_as
"""
_UNDER_KEY = text(UNDER_KEY)
END = """
UPDATE dead_letters SET state = :state, requeued_as = cast(:target AS uuid), ended_at = now(),
  actor = :actor, requeue_key = cast(:key AS text)
WHERE state = 'open' AND ctid = ANY(ARRAY(
  SELECT d.ctid
  FROM unnest(cast(:batches AS uuid[]), cast(:lines AS integer[])) AS g (batch, line)
  CROSS JOIN LATERAL (
    SELECT ctid FROM dead_letters
    WHERE batch_id = g.batch AND line = g.line AND tenant_id = :tenant AND state = 'open'
    OFFSET 0 FOR UPDATE) d))
RETURNING batch_id
"""
_END = text(END)


class PostgresRequeues:
    """Port DeadLetterDesk."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def named(self, tenant: TenantId, letters: Sequence[LetterId]) -> Selection:
        """Return what there is of these letters; raises NotFound for an unknown one."""
        parameters = _keys(letters) | {"tenant": tenant}
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_NAMED, parameters).all()
        open_, requeued = [], Counter[tuple[BatchId, BatchId]]()
        discarded = 0
        for row in rows:
            if row.state is None:
                raise letter_not_found(LetterId(BatchId(row.batch), row.line), "ids")
            if row.state == LetterState.OPEN:
                open_.append(LetterPlace(BatchId(row.batch), row.line, row.start, row.length))
            elif row.state == LetterState.REQUEUED:
                requeued[BatchId(row.batch), BatchId(row.requeued_as)] += 1
            else:
                discarded += 1
        earlier = tuple(
            Requeued(source, batch, count) for (source, batch), count in sorted(requeued.items())
        )
        return Selection(_in_order(open_), earlier, discarded)

    def matching(self, tenant: TenantId, wanted: LetterFilter, *, most: int) -> Selection:
        """Return the open letters of a filter, and how many there are behind the oldest `most`."""
        still_open = LetterFilter(wanted.batch, wanted.error_code, LetterState.OPEN)
        parameters = matches(tenant, still_open)
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_MATCHING, parameters | {"most": most}).all()
            count = len(rows)
            if count == most:
                count = connection.execute(_COUNT, parameters).scalar_one()
        found = [LetterPlace(BatchId(row[0]), *row[1:]) for row in rows]
        return Selection(_in_order(found), remaining=max(0, count - len(found)))

    def requeued_under(self, tenant: TenantId, key: str) -> Sequence[Requeued]:
        """Return what an earlier call with this idempotency key requeued."""
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_UNDER_KEY, {"tenant": tenant, "key": key})
            found = {(row.batch_id, row.requeued_as): row.letters for row in rows}
        return [
            Requeued(BatchId(source), BatchId(batch), letters)
            for (source, batch), letters in sorted(found.items())
        ]

    def requeue(
        self,
        moves: Sequence[tuple[NewBatch, StoredFile, Sequence[LetterPlace]]],
        events: Sequence[Event],
        *,
        actor: str,
        key: str | None,
    ) -> bool:
        """Record files, batches and events, and mark the letters, all together.

        False, and nothing is recorded, when one of the letters is not open any more.
        """
        tenant = moves[0][0].tenant
        with acting_for(self._engine, tenant) as connection:
            for batch, file, places in moves:
                changed = _end(connection, tenant, places, actor, target=batch.id, key=key)
                if changed.total() != len(places):
                    connection.rollback()
                    return False
                add_expected_file(connection, file)
                insert_batch(connection, batch, file.object_key, file.lines)
                source, made = (format_batch_id(each) for each in (places[0].batch, batch.id))
                subject = f"{source}: {len(places)} lines as {made}"
                note(connection, tenant, actor, "dead_letters.requeue", [subject])
            for event in events:
                add_event(connection, event)
        return True

    def discard(self, tenant: TenantId, letters: Sequence[LetterPlace], *, actor: str) -> int:
        """Mark letters as discarded; return how many were open still."""
        with acting_for(self._engine, tenant) as connection:
            changed = _end(connection, tenant, letters, actor)
            subjects = [
                f"{format_batch_id(batch)}: {count} lines"
                for batch, count in sorted(changed.items())
            ]
            note(connection, tenant, actor, "dead_letters.discard", subjects)
        return changed.total()


def _end(
    connection: Connection,
    tenant: TenantId,
    letters: Sequence[LetterPlace],
    actor: str,
    *,
    target: BatchId | None = None,
    key: str | None = None,
) -> Counter[BatchId]:
    """Mark open letters as requeued in `target`, or as discarded; return how many, by batch."""
    state = LetterState.DISCARDED if target is None else LetterState.REQUEUED
    parameters = _keys([LetterId(letter.batch, letter.line) for letter in letters]) | {
        "tenant": tenant,
        "state": state.value,
        "target": target,
        "actor": actor,
        "key": key,
    }
    return Counter(BatchId(batch) for batch in connection.execute(_END, parameters).scalars())


def _keys(letters: Sequence[LetterId]) -> dict[str, object]:
    return {
        "batches": [letter.batch for letter in letters],
        "lines": [letter.line for letter in letters],
    }


def _in_order(places: list[LetterPlace]) -> tuple[LetterPlace, ...]:
    return tuple(sorted(places, key=lambda place: (place.batch, place.line)))

"""The records of batches, as users see them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from lowtide.batches.admission import admit_batch
from lowtide.batches.ledger_keeper import NO_LEDGER
from lowtide.batches.metrics import requests_ended
from lowtide.batches.model import (
    DROPPED_AS,
    FINAL_STATUSES,
    Batch,
    BatchStatus,
    Export,
    ExportState,
    NewBatch,
    Outcomes,
    RequestStatus,
)
from lowtide.batches.queued import drop_queued
from lowtide.core.errors import Conflict, InvalidRequest, NotFound, check_key_digest
from lowtide.core.ids import BatchId, FileId, TenantId, format_batch_id, format_file_id
from lowtide.core.pools import Cost, Pool
from lowtide.database.connections import acting_for
from lowtide.events.outbox import add_event, trace_columns, trace_of
from lowtide.files.lines import Problem
from lowtide.files.model import estimate_tokens, object_key
from lowtide.files.store import file_not_found
from lowtide.objects.data_keys import add_key
from lowtide.planning.reasons import Bound, Reason, Risk
from lowtide.tenants.audit import note
from lowtide.tenants.model import BatchSize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, CursorResult, Engine

    from lowtide.batches.admission import AdmissionPolicy
    from lowtide.batches.ledger_keeper import LedgerKeeper
    from lowtide.events.model import Event
    from lowtide.files.model import StoredFile
    from lowtide.fleets.placement import BatchPart


_GET = text("SELECT * FROM batch_states WHERE id = :id")
_PAGE = text("""
SELECT * FROM batch_states
WHERE tenant_id = :tenant AND (cast(:after AS uuid) IS NULL OR id < :after)
  AND (cast(:status AS text) IS NULL OR status = :status)
  AND (cast(:user AS text) IS NULL OR strpos(lower(user_id), lower(cast(:user AS text))) > 0)
ORDER BY id DESC LIMIT :limit
""")
# FOR KEY SHARE: the file cannot be deleted before this batch exists and protects it.
_INPUT = text("""
SELECT object_key, lines, bytes, (
  SELECT zero_retention FROM tenants WHERE id = files.tenant_id) AS zero_retention
FROM files WHERE id = :id AND purpose = 'batch' FOR KEY SHARE
""")
_CREATE = text("""
INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, completion_window,
  created_at, deadline, at_risk, risk_reason, risk_since, metadata, output_expires_after, idempotency_key,
  idempotency_digest, traceparent, tracestate, start_pool, spot_price, dedicated_price, currency,
  input_url, output_url, export_state, export_next_at, zero_retention, fleet, enqueued_tokens,
  priority)
VALUES (:id, :tenant, :user, :input_file, :input_key, :endpoint, :completion_window,
  :created_at, :deadline, cast(:risk AS text) IS NOT NULL, :risk,
  CASE WHEN cast(:risk AS text) IS NOT NULL THEN now() END, cast(:metadata AS jsonb),
  :output_expires_after, :idempotency_key, :idempotency_digest, :traceparent, :tracestate, :start_pool,
  :spot_price, :dedicated_price, :currency, :input_url, :output_url,
  CASE WHEN cast(:output_url AS text) IS NOT NULL THEN 'pending' END,
  CASE WHEN cast(:output_url AS text) IS NOT NULL THEN now() END,
  :zero_retention, :fleet, :tokens, :priority)
ON CONFLICT (tenant_id, idempotency_key) DO NOTHING
""")
_ADD_PARTS = text("""
INSERT INTO batch_fleets (batch_id, tenant_id, fleet, model, lines, spot_price, dedicated_price)
SELECT :batch, :tenant, fleet, model, lines, spot_price, dedicated_price
FROM json_to_recordset(cast(:parts AS json)) AS p (fleet text, model text, lines integer,
  spot_price double precision, dedicated_price double precision)
""")
# What search finds a batch by, besides its id.
_ADD_TERMS = text("""
INSERT INTO batch_terms (batch_id, tenant_id, field, value)
SELECT :id, :tenant, key, value FROM json_each_text(cast(:terms AS json))
""")
_BY_IDEMPOTENCY_KEY = text("""
SELECT * FROM batch_states WHERE tenant_id = :tenant AND idempotency_key = :key
""")
# Excludes expiring batches: two finalizers would write the error file with different reasons.
_CANCEL = text("""
UPDATE batches SET status = 'cancelling', cancelling_at = now(), at_risk = false
WHERE id = :id AND status IN ('validating', 'in_progress', 'finalizing') AND NOT expiring
""")
_UNDRAINED = text("""
SELECT EXISTS (SELECT 1 FROM claimed_runs WHERE batch_id = :id)
  OR EXISTS (SELECT 1 FROM segments WHERE batch_id = :id AND split_at IS NULL)
""")
_DRAINED = text("""
UPDATE batches SET drained_at = now(), nudged_at = now() WHERE id = :id
RETURNING traceparent, tracestate
""")


class BatchStore:
    """The records of batches."""

    def __init__(self, engine: Engine, *, ledger: LedgerKeeper = NO_LEDGER) -> None:
        self._engine = engine
        self._ledger = ledger

    def create(
        self, batch: NewBatch, event: Event, policy: AdmissionPolicy | None = None
    ) -> tuple[Batch, bool]:
        """Record a batch and its event, or return the one with the same idempotency key.

        The flag is True for a new batch. Raises IdempotencyKeyReused if the body differs, NotFound
        for an unknown file, InvalidRequest for a plain one if the tenant has zero retention, and
        the errors of `insert_batch`.
        """
        with acting_for(self._engine, batch.tenant) as connection:
            key, size = _input_of(connection, batch)
            if insert_batch(connection, batch, key, size, policy):
                add_event(connection, event)
                if batch.actor is not None:
                    name = format_batch_id(batch.id)
                    note(connection, batch.tenant, batch.actor, "batches.create", [name])
                created = _load(connection, batch.id)
                self._ledger.record(connection, [batch.id])
                return created, True
            existing = _find_by_key(connection, batch.tenant, batch.idempotency_key).one()
            check_key_digest(existing.idempotency_digest, batch.idempotency_digest)
            return batch_of(existing), False

    def created_under(
        self, tenant: TenantId, key: str | None, digest: bytes | None
    ) -> Batch | None:
        """Return the batch with this idempotency key; raises IdempotencyKeyReused."""
        with acting_for(self._engine, tenant) as connection:
            existing = _find_by_key(connection, tenant, key).one_or_none()
        if existing is None:
            return None
        check_key_digest(existing.idempotency_digest, digest)
        return batch_of(existing)

    def get(self, tenant: TenantId, batch: BatchId) -> Batch:
        """Return a batch; raises NotFound."""
        with acting_for(self._engine, tenant) as connection:
            return _load(connection, batch)

    def page(
        self,
        tenant: TenantId,
        *,
        after: BatchId | None,
        limit: int,
        status: BatchStatus | None = None,
        user: str | None = None,
    ) -> Sequence[Batch]:
        """Return up to `limit` batches that follow `after`, newest first."""
        parameters = {
            "tenant": tenant,
            "after": after,
            "limit": limit,
            "status": status,
            "user": user,
        }
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_PAGE, parameters)
            return [batch_of(row) for row in rows]

    def cancel(
        self, tenant: TenantId, batch: BatchId, event: Event, actor: str | None = None
    ) -> tuple[Batch, bool]:
        """Start cancelling a batch; record `event` if it is split and no request is running."""
        with acting_for(self._engine, tenant) as connection:
            # The status changes first: after that no request of the batch can be queued again, and
            # the next statements see all of them.
            changed = connection.execute(_CANCEL, {"id": batch}).rowcount == 1
            if not changed:
                return _require_cancelled(_load(connection, batch)), False
            if actor is not None:
                note(connection, tenant, actor, "batches.cancel", [format_batch_id(batch)])
            dropped = drop_queued(connection, [batch])
            drained = not connection.execute(_UNDRAINED, {"id": batch}).scalar_one()
            if drained:
                row = connection.execute(_DRAINED, {"id": batch}).one()
                add_event(connection, replace(event, trace=trace_of(row)))
            cancelled = _load(connection, batch)
            self._ledger.record_change(connection, batch)
        requests_ended(RequestStatus.CANCELLED, dropped)
        return cancelled, drained


def _input_of(connection: Connection, batch: NewBatch) -> tuple[str, BatchSize]:
    """Return the key and the size of the input; an import has none yet.

    Raises NotFound, and InvalidRequest for a plain file of a tenant with zero retention.
    """
    if batch.input_url is not None:
        return object_key(batch.input_file), BatchSize(0, 0)
    source = connection.execute(_INPUT, {"id": batch.input_file}).one_or_none()
    if source is None:
        error = file_not_found(batch.input_file)
        raise NotFound(error.message, param="input_file_id")
    if source.zero_retention and batch.data_key is None:
        raise plain_input(batch.input_file)
    return source.object_key, BatchSize(source.lines, estimate_tokens(source.bytes))


def _find_by_key(connection: Connection, tenant: TenantId, key: str | None) -> CursorResult[Any]:
    return connection.execute(_BY_IDEMPOTENCY_KEY, {"tenant": tenant, "key": key})


def plain_input(file: FileId) -> InvalidRequest:
    """Return the error for zero retention with an input file that was uploaded without it."""
    return InvalidRequest(
        f"File {format_file_id(file)!r} was uploaded without zero retention: upload it again with "
        "zero_retention=true, and delete this one.",
        param="input_file_id",
        code="input_not_encrypted",
    )


def size_of(file: StoredFile) -> BatchSize:
    """Return the size of a batch of a whole file."""
    return BatchSize(file.lines, file.estimated_tokens)


def insert_batch(
    connection: Connection,
    batch: NewBatch,
    input_key: str,
    size: BatchSize,
    policy: AdmissionPolicy | None = None,
) -> bool:
    """Record a batch in the caller's transaction; return False if its idempotency key is taken.

    Raises the errors of `admit_batch` if there is no room for its requests.
    """
    risk = admit_batch(connection, batch, size, policy)
    return add_batch(connection, batch, input_key, size, risk)


def add_batch(
    connection: Connection,
    batch: NewBatch,
    input_key: str,
    size: BatchSize,
    risk: Reason | None = None,
) -> bool:
    """Record a batch that was admitted before; return False if its idempotency key is taken."""
    parameters = _parameters(batch, input_key) | {"risk": risk, "tokens": size.tokens}
    if connection.execute(_CREATE, parameters).rowcount != 1:
        return False
    if batch.data_key is not None:
        add_key(connection, batch.data_key)
    add_parts(connection, batch.tenant, batch.id, batch.placement.spread)
    terms = msgspec.json.encode(batch.terms).decode()
    connection.execute(_ADD_TERMS, {"id": batch.id, "tenant": batch.tenant, "terms": terms})
    return True


def add_parts(
    connection: Connection, tenant: TenantId, batch: BatchId, spread: Sequence[BatchPart]
) -> None:
    """Record the requests by fleet of a batch that several fleets run."""
    if spread:
        parts = msgspec.json.encode(spread).decode()
        connection.execute(_ADD_PARTS, {"batch": batch, "tenant": tenant, "parts": parts})


def _require_cancelled(batch: Batch) -> Batch:
    # The answer to a client that sends its call again, not having seen the first one's.
    if batch.status in FINAL_STATUSES and batch.status is not BatchStatus.CANCELLED:
        raise Conflict(
            f"Batch {format_batch_id(batch.id)} is {batch.status} and cannot be cancelled.",
            code="batch_not_cancellable",
        )
    return batch


def _load(connection: Connection, batch: BatchId) -> Batch:
    row = connection.execute(_GET, {"id": batch}).one_or_none()
    if row is None:
        raise NotFound(f"Batch {format_batch_id(batch)!r} not found: check the id.", param="id")
    return batch_of(row)


def _parameters(batch: NewBatch, input_key: str) -> dict[str, object]:
    return {
        "id": batch.id,
        "tenant": batch.tenant,
        "user": batch.user,
        "input_file": batch.input_file,
        "input_key": input_key,
        "endpoint": batch.endpoint,
        "completion_window": batch.completion_window,
        "created_at": batch.created_at,
        "deadline": batch.deadline,
        "metadata": None
        if batch.metadata is None
        else msgspec.json.encode(batch.metadata).decode(),
        "output_expires_after": batch.output_expires_after,
        "idempotency_key": batch.idempotency_key,
        "idempotency_digest": batch.idempotency_digest,
        "start_pool": batch.pool.value,
        "spot_price": batch.prices.spot,
        "dedicated_price": batch.prices.dedicated,
        "currency": batch.prices.currency,
        "input_url": batch.input_url,
        "output_url": batch.output_url,
        "zero_retention": batch.data_key is not None,
        "fleet": batch.placement.fleet,
        "priority": batch.priority,
        **trace_columns(batch.trace),
    }


def batch_of(row: Any) -> Batch:
    """Return the batch in a row of `batch_states`."""
    return Batch(
        id=BatchId(row.id),
        tenant=TenantId(row.tenant_id),
        user=row.user_id,
        input_file=FileId(row.input_file_id),
        input_key=row.input_key,
        endpoint=row.endpoint,
        model=row.model,
        completion_window=row.completion_window,
        status=BatchStatus(row.status),
        created_at=row.created_at,
        deadline=row.deadline,
        in_progress_at=row.in_progress_at,
        finalizing_at=row.finalizing_at,
        completed_at=row.completed_at,
        failed_at=row.failed_at,
        expired_at=row.expired_at,
        cancelling_at=row.cancelling_at,
        cancelled_at=row.cancelled_at,
        at_risk=row.at_risk,
        total=row.total,
        outcomes=_outcomes(row),
        output_file=None if row.output_file_id is None else FileId(row.output_file_id),
        error_file=None if row.error_file_id is None else FileId(row.error_file_id),
        errors=tuple(Problem(**problem) for problem in row.errors or ()),
        metadata=row.metadata,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cached_tokens=row.cached_tokens,
        reasoning_tokens=row.reasoning_tokens,
        interruptions=row.interrupted,
        retries=row.retried,
        escalations=row.escalated,
        finished_on_dedicated=row.on_dedicated,
        cost=Cost(row.currency, row.spot_cost, row.dedicated_cost, row.all_dedicated_cost),
        trace=trace_of(row),
        pool=Pool(row.start_pool),
        expiring=row.expiring and row.expired_at is None,
        retention=row.batch_retention
        if row.output_expires_after is None
        else row.output_expires_after,
        data_ended_at=row.data_ended_at,
        zero_retention=row.zero_retention,
        priority=row.priority,
        fleet=row.fleet,
        fleets=() if row.fleet else tuple(dict.fromkeys(row.fleet_of_model or ())),
        risk=_risk(row) if row.at_risk and row.risk_reason is not None else None,
        input_url=row.input_url,
        export=_export(row) if row.output_url is not None else None,
    )


def _export(row: Any) -> Export:
    return Export(row.output_url, ExportState(row.export_state), row.export_error)


def _outcomes(row: Any) -> Outcomes:
    """Return the requests by state: those that are in no table but `requests` were dropped."""
    ran = row.tallied_completed + row.tallied_failed
    others = max(0, row.total - ran - row.running)
    dropped_as = RequestStatus.EXPIRED if row.expiring else DROPPED_AS.get(BatchStatus(row.status))
    return Outcomes(
        queued=others if dropped_as is None else 0,
        running=row.running,
        completed=row.tallied_completed,
        failed=row.tallied_failed,
        dead_lettered=row.dead_lettered,
        expired=others if dropped_as is RequestStatus.EXPIRED else 0,
        cancelled=others if dropped_as is RequestStatus.CANCELLED else 0,
    )


def _risk(row: Any) -> Risk:
    return Risk(Reason(row.risk_reason), bound_of(row.risk_bound), row.risk_since)


def bound_of(numbers: Any) -> Bound | None:
    """Return the bound in a column of JSON."""
    return None if numbers is None else Bound(**numbers)

"""The records of an evacuation in the database of the cell that takes over, as an operator."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.batches.store import add_batch, size_of
from lowtide.core.errors import Conflict
from lowtide.core.ids import TenantId, format_batch_id, now
from lowtide.database.connections import acting_for, begin
from lowtide.events.model import EventType, batch_event
from lowtide.events.outbox import add_event
from lowtide.files.model import object_key
from lowtide.files.store import add_expected_file, add_orphans
from lowtide.tenants.audit import note
from lowtide.tenants.model import BatchSize, Tenant

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Engine

    from lowtide.batches.ledger_keeper import LedgerKeeper
    from lowtide.batches.model import NewBatch
    from lowtide.batches.store import BatchStore
    from lowtide.core.ids import FileId
    from lowtide.files.model import StoredFile
    from lowtide.tenants.model import TenantLimits
    from lowtide.tenants.store import TenantStore


_TENANT_OF_NAME = text("SELECT id FROM tenants WHERE name = :name")
_HAS_TENANT = text("SELECT EXISTS (SELECT 1 FROM tenants WHERE id = :tenant)")
_HAS_FILE = text("SELECT EXISTS (SELECT 1 FROM files WHERE id = :file AND object_key = :key)")
# Two evacuations of one cell may create the same batch at the same time.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")
_HAS_BATCH = text("SELECT EXISTS (SELECT 1 FROM batches WHERE id = :batch)")


class EvacuationStore:
    """Creates the batches, files and tenants of another cell; the audit log records `actor`."""

    def __init__(
        self,
        engine: Engine,
        batches: BatchStore,
        tenants: TenantStore,
        ledger: LedgerKeeper,
        *,
        limits: TenantLimits,
        actor: str,
        new_id: Callable[[], UUID],
    ) -> None:
        """`limits` are those of new tenants."""
        self._engine = engine
        self._batches = batches
        self._tenants = tenants
        self._ledger = ledger
        self._limits = limits
        self._actor = actor
        self._new_id = new_id

    def tenant_of_name(self, name: str) -> TenantId | None:
        """Return the tenant with this name; None if there is none."""
        with begin(self._engine) as connection:
            id_ = connection.execute(_TENANT_OF_NAME, {"name": name}).scalar_one_or_none()
        return None if id_ is None else TenantId(id_)

    def has_tenant(self, tenant: TenantId) -> bool:
        """Return whether a tenant exists."""
        with begin(self._engine) as connection:
            return bool(connection.execute(_HAS_TENANT, {"tenant": tenant}).scalar_one())

    def ensure_tenant(self, tenant: TenantId, name: str) -> None:
        """Create a tenant unless it exists; raises Conflict if another one has its name."""
        if self.has_tenant(tenant):
            return
        new = Tenant(tenant, name, 1, self._limits, now())
        try:
            self._tenants.add(new, self._actor)
        except Conflict:
            # Another evacuation may have created it.
            if not self.has_tenant(tenant):
                raise

    def has_file(self, tenant: TenantId, file: FileId, key: str) -> bool:
        """Return whether a file and its object are here."""
        with acting_for(self._engine, tenant) as connection:
            return bool(connection.execute(_HAS_FILE, {"file": file, "key": key}).scalar_one())

    def create(self, batch: NewBatch, file: StoredFile | None, tokens: int, *, source: str) -> bool:
        """Create a batch of the cell `source`, and its input file; return False if it exists.

        It was admitted there. Without a file, the input is an object that ends with the batch.
        """
        event = batch_event(
            self._new_id(), EventType.BATCH_CREATED, batch.tenant, batch.id, batch.trace
        )
        key = object_key(batch.input_file)
        with acting_for(self._engine, batch.tenant) as connection:
            connection.execute(_LOCK, {"key": f"evacuate {batch.id}"})
            if connection.execute(_HAS_BATCH, {"batch": batch.id}).scalar_one():
                return False
            if file is not None:
                add_expected_file(connection, file)
            size = BatchSize(0, tokens) if file is None else size_of(file)
            if not add_batch(connection, batch, key, size):
                keyless = replace(batch, idempotency_key=None, idempotency_digest=None)
                add_batch(connection, keyless, key, size)
            if file is None:
                add_orphans(connection, batch.tenant, [key], 0)
            add_event(connection, event, delay=0)
            subject = f"{format_batch_id(batch.id)} of cell {source}"
            note(connection, batch.tenant, self._actor, "cells.evacuate", [subject])
            self._ledger.record(connection, [batch.id])
        return True

    def cancel(self, batch: NewBatch) -> None:
        """Cancel a batch that was being cancelled in its cell, unless it has ended here."""
        event = batch_event(self._new_id(), EventType.BATCH_DRAINED, batch.tenant, batch.id)
        with suppress(Conflict):
            self._batches.cancel(batch.tenant, batch.id, event, self._actor)

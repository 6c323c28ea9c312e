"""CloudEvents recorded in the transaction that causes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from lowtide.domain.events import Event, EventType
from lowtide.domain.ids import TenantId
from lowtide.postgres.connections import acting_for, begin
from lowtide.postgres.traces import trace_columns, trace_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

_ADD = text("""
INSERT INTO outbox (id, tenant_id, type, subject, data, traceparent, tracestate)
VALUES (:id, :tenant, :type, :subject, cast(:data AS jsonb), :traceparent, :tracestate)
""")
_WAITING = text("""
SELECT id, type, tenant_id, subject, data, traceparent, tracestate FROM outbox
WHERE created_at <= now() - make_interval(secs => :age) ORDER BY id LIMIT :limit
""")
_FORGET = text("DELETE FROM outbox WHERE id = :id")


def add_event(connection: Connection, event: Event) -> None:
    """Record an event in the caller's transaction."""
    connection.execute(
        _ADD,
        {
            "id": event.id,
            "tenant": event.tenant,
            "type": event.type.value,
            "subject": event.subject,
            "data": msgspec.json.encode(event.data).decode(),
            **trace_columns(event.trace),
        },
    )


class PostgresOutbox:
    """The outbox, of every tenant for a worker role and of the event's tenant for the API role."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def waiting(self, limit: int, older_than: float) -> Sequence[Event]:
        """Return events recorded more than `older_than` seconds ago, oldest first."""
        with begin(self._engine) as connection:
            rows = connection.execute(_WAITING, {"age": older_than, "limit": limit})
            return [
                Event(
                    row.id,
                    EventType(row.type),
                    TenantId(row.tenant_id),
                    row.subject,
                    row.data,
                    trace_of(row),
                )
                for row in rows
            ]

    def forget(self, event: Event) -> None:
        """Drop an event that was accepted."""
        with acting_for(self._engine, event.tenant) as connection:
            connection.execute(_FORGET, {"id": event.id})

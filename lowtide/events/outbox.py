"""The outbox: CloudEvents recorded in the transaction that causes them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from lowtide.core.ids import TenantId
from lowtide.database.connections import acting_for, begin
from lowtide.events.model import Event, EventType
from lowtide.telemetry.tracing import parse_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.telemetry.tracing import TraceContext


def trace_columns(trace: TraceContext | None) -> dict[str, str | None]:
    """Return the parameters for the columns `traceparent` and `tracestate`."""
    if trace is None:
        return {"traceparent": None, "tracestate": None}
    return {"traceparent": trace.traceparent, "tracestate": trace.state or None}


def trace_of(row: Any) -> TraceContext | None:
    """Return the trace context of a row with these columns."""
    return parse_trace(row.traceparent, row.tracestate)


OWN_ATTEMPT_SECONDS = 5.0
"""Seconds for the process that recorded an event to send it, before the scheduler does."""
_RETRY_SECONDS = 10.0
_LONGEST_RETRY_SECONDS = 300.0
_RETENTION_SECONDS = 86_400.0
_ADD = text("""
INSERT INTO outbox (id, tenant_id, type, subject, data, traceparent, tracestate, next_at)
VALUES (:id, :tenant, :type, :subject, cast(:data AS jsonb), :traceparent, :tracestate,
  now() + make_interval(secs => :delay))
""")
# Counted before the attempt, so that one that crashes the process counts, too. Entries of the audit
# log are written by a trigger, and have an index of their own.
_DUE_OF = """
UPDATE outbox SET attempts = attempts + 1,
  next_at = now() + make_interval(secs => least(:most, :base * 2 ^ least(attempts, 16)))
WHERE id = ANY(ARRAY(
  SELECT id FROM outbox WHERE next_at <= now() AND {rows} ORDER BY next_at LIMIT :limit
  FOR UPDATE SKIP LOCKED))
RETURNING id, type, tenant_id, subject, data, traceparent, tracestate, attempts,
  created_at < now() - make_interval(secs => :kept) AS is_old
"""
DUE = _DUE_OF.format(rows="type <> 'dev.lowtide.audit'")
AUDIT_DUE = _DUE_OF.format(rows="type = 'dev.lowtide.audit'")
_FORGET = text("DELETE FROM outbox WHERE id = :id")
_FORGET_ALL = text("DELETE FROM outbox WHERE id = ANY(:ids)")
_log = logging.getLogger(__name__)


def add_event(connection: Connection, event: Event, *, delay: float = OWN_ATTEMPT_SECONDS) -> None:
    """Record an event in the caller's transaction; the scheduler sends it after `delay` seconds."""
    connection.execute(
        _ADD,
        {
            "id": event.id,
            "tenant": event.tenant,
            "type": event.type.value,
            "subject": event.subject,
            "data": msgspec.json.encode(event.data).decode(),
            **trace_columns(event.trace),
            "delay": delay,
        },
    )


class Outbox:
    """The outbox: of all tenants for a worker role, of the event's tenant for the API role."""

    _due = text(DUE)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, limit: int) -> Sequence[Event]:
        """Return up to `limit` events to be sent now, and schedule their next attempts.

        An event that was not accepted for a day is dropped: the scheduler announces the pending
        step of a batch again anyway, and an audit entry is still in the log.
        """
        parameters = {
            "limit": limit,
            "base": _RETRY_SECONDS,
            "most": _LONGEST_RETRY_SECONDS,
            "kept": _RETENTION_SECONDS,
        }
        with begin(self._engine) as connection:
            rows = connection.execute(self._due, parameters).all()
            expired = [row for row in rows if row.is_old]
            if expired:
                connection.execute(_FORGET_ALL, {"ids": [row.id for row in expired]})
        for row in expired:
            extra = {"event_type": row.type, "subject": row.subject, "attempts": row.attempts}
            _log.error("event.given_up", extra=extra)
        return [_event(row) for row in rows if not row.is_old and row.type in _TYPES]

    def forget(self, event: Event) -> None:
        """Delete an event that was accepted."""
        tenant, engine = event.tenant, self._engine
        with begin(engine) if tenant is None else acting_for(engine, tenant) as connection:
            connection.execute(_FORGET, {"id": event.id})


class AuditOutbox(Outbox):
    """The audit log's part of the outbox: an event for each entry, which a trigger writes."""

    _due = text(AUDIT_DUE)


# The previous or next release may record other types, which its own scheduler sends.
_TYPES = frozenset(EventType)


def _event(row: Any) -> Event:
    return Event(
        row.id,
        EventType(row.type),
        None if row.tenant_id is None else TenantId(row.tenant_id),
        row.subject,
        row.data,
        trace_of(row),
    )

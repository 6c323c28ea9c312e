"""The outbox: CloudEvents recorded in the transaction that causes them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

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
_BACKOFF = {"base": _RETRY_SECONDS, "most": _LONGEST_RETRY_SECONDS}
_RETENTION_SECONDS = 86_400.0
_ADD = text("""
INSERT INTO outbox (id, tenant_id, type, subject, data, traceparent, tracestate, next_at)
VALUES (:id, :tenant, :type, :subject, cast(:data AS jsonb), :traceparent, :tracestate,
  now() + make_interval(secs => :delay))
""")
# Counted before the attempt, so that one that crashes the process counts, too.
_ATTEMPT = """attempts = attempts + 1,
  next_at = now() + make_interval(secs => least(:most, :base * 2 ^ least(attempts, 16)))"""
DUE = f"""
UPDATE outbox SET {_ATTEMPT}
WHERE id = ANY(ARRAY(
  SELECT id FROM outbox WHERE next_at <= now() ORDER BY next_at LIMIT :limit FOR UPDATE SKIP LOCKED))
RETURNING id, type, tenant_id, subject, data, traceparent, tracestate, attempts,
  created_at < now() - make_interval(secs => :kept) AS is_old
"""  # noqa: S608
_DUE = text(DUE)
AUDIT_DUE = f"""
UPDATE audit_outbox SET {_ATTEMPT}
WHERE id = ANY(ARRAY(
  SELECT id FROM audit_outbox WHERE next_at <= now() ORDER BY next_at LIMIT :limit
  FOR UPDATE SKIP LOCKED))
RETURNING id, tenant_id, action, data
"""  # noqa: S608
AUDIT_GIVEN_UP = """
DELETE FROM audit_outbox WHERE id = ANY(ARRAY(
  SELECT id FROM audit_outbox WHERE created_at < now() - make_interval(secs => :kept)
  ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED))
"""
_AUDIT_DUE, _AUDIT_GIVEN_UP = text(AUDIT_DUE), text(AUDIT_GIVEN_UP)
_AUDIT_FORGET = text("DELETE FROM audit_outbox WHERE id = :id")
_GIVEN_UP_AT_ONCE = 10_000
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

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, limit: int) -> Sequence[Event]:
        """Return up to `limit` events to be sent now, and schedule their next attempts.

        An event that was not accepted for a day is dropped: the scheduler announces the pending
        step of a batch again anyway.
        """
        parameters = {"limit": limit, "kept": _RETENTION_SECONDS, **_BACKOFF}
        with begin(self._engine) as connection:
            rows = connection.execute(_DUE, parameters).all()
            expired = [row for row in rows if row.is_old]
            if expired:
                connection.execute(_FORGET_ALL, {"ids": [row.id for row in expired]})
        for row in expired:
            extra = {"event_type": row.type, "subject": row.subject, "attempts": row.attempts}
            _log.error("event.given_up", extra=extra)
        return [_event(row) for row in rows if not row.is_old and row.type in _TYPES]

    def forget(self, event: Event) -> None:
        """Delete an event that was accepted."""
        # Each event of a batch has a tenant.
        with acting_for(self._engine, cast("TenantId", event.tenant)) as connection:
            connection.execute(_FORGET, {"id": event.id})


class AuditOutbox:
    """The events of audit entries, which a trigger writes; as the scheduler's role."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, limit: int) -> Sequence[Event]:
        """Return up to `limit` events to be sent now, and schedule their next attempts.

        Those that were not accepted for a day are dropped: their entries are still in the log.
        """
        with begin(self._engine) as connection:
            expiry = {"kept": _RETENTION_SECONDS, "limit": _GIVEN_UP_AT_ONCE}
            given_up = connection.execute(_AUDIT_GIVEN_UP, expiry).rowcount
            rows = connection.execute(_AUDIT_DUE, {"limit": limit, **_BACKOFF}).all()
        if given_up:
            _log.error("audit_events.given_up", extra={"events": given_up})
        return [
            Event(
                row.id,
                EventType.AUDIT,
                None if row.tenant_id is None else TenantId(row.tenant_id),
                row.action,
                row.data,
            )
            for row in rows
        ]

    def forget(self, event: Event) -> None:
        """Delete an event that was accepted."""
        with begin(self._engine) as connection:
            connection.execute(_AUDIT_FORGET, {"id": event.id})


# The previous or next release may record other types, which its own scheduler sends.
_TYPES = frozenset(EventType)


def _event(row: Any) -> Event:
    return Event(
        row.id,
        EventType(row.type),
        TenantId(row.tenant_id),
        row.subject,
        row.data,
        trace_of(row),
    )

"""The CloudEvents that chain the functions, and their sink."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from lowtide.core.ids import TenantId, format_batch_id

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping

    from lowtide.core.ids import BatchId
    from lowtide.telemetry.tracing import TraceContext


class EventType(StrEnum):
    """The `type` attribute of a CloudEvent."""

    BATCH_CREATED = "dev.lowtide.batch.created"
    SEGMENT_CREATED = "dev.lowtide.segment.created"
    BATCH_DRAINED = "dev.lowtide.batch.drained"
    BATCH_COMPLETED = "dev.lowtide.batch.completed"
    SEGMENT_DRAINED = "dev.lowtide.segment.drained"
    EXPORT_REQUESTED = "dev.lowtide.export.requested"
    AUDIT = "dev.lowtide.audit"


@dataclass(frozen=True, slots=True)
class Event:
    """An event about a batch, or an entry of the audit log; `id` identifies repeated deliveries.

    `tenant` is None for an action on the whole installation. `trace` is the context of the work
    that caused it, which the receiver continues.
    """

    id: uuid.UUID
    type: EventType
    tenant: TenantId | None
    subject: str
    data: Mapping[str, object]
    trace: TraceContext | None = None


def batch_event(
    id_: uuid.UUID,
    type_: EventType,
    tenant: TenantId,
    batch: BatchId,
    trace: TraceContext | None = None,
) -> Event:
    """Return an event about a batch."""
    public_id = format_batch_id(batch)
    return Event(id_, type_, tenant, public_id, {"batch_id": public_id}, trace)


def segment_event(
    id_: uuid.UUID,
    type_: EventType,
    tenant: TenantId,
    batch: BatchId,
    segment: int,
    trace: TraceContext | None = None,
) -> Event:
    """Return an event about a segment of a batch."""
    public_id = format_batch_id(batch)
    return Event(id_, type_, tenant, public_id, {"batch_id": public_id, "segment": segment}, trace)


class EventSink(Protocol):
    """A destination of CloudEvents."""

    def publish(self, event: Event) -> bool:
        """Send one event; return whether the sink accepted it. Never raises."""
        ...

"""Getting recorded events to the sink."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lowtide.domain.errors import LowtideError
from lowtide.ports.tracing import BATCH, TENANT, SpanKind
from lowtide.services.scopes import UNTRACED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowtide.domain.events import Event
    from lowtide.ports import EventSink, Outbox
    from lowtide.ports.tracing import Tracer

_log = logging.getLogger(__name__)


class Publisher:
    """Sends events after their transaction; what the sink refuses stays in the outbox."""

    def __init__(self, sink: EventSink, outbox: Outbox, *, tracer: Tracer = UNTRACED) -> None:
        self._sink = sink
        self._outbox = outbox
        self._tracer = tracer

    def publish(self, events: Iterable[Event]) -> int:
        """Send events that are already recorded; return how many were accepted."""
        accepted = 0
        for event in events:
            if not self._send(event):
                continue
            accepted += 1
            try:
                self._outbox.forget(event)
            except LowtideError as error:
                # What the caller did is committed. Sent twice is harmless, told that it failed not.
                _log.warning("event.kept", extra={"reason": error.message})
        return accepted

    def _send(self, event: Event) -> bool:
        # In the event's own trace, also when the scheduler sends what others could not.
        with self._tracer.span(
            f"send {event.type}",
            kind=SpanKind.PRODUCER,
            parent=event.trace,
            attributes={
                "cloudevents.event_id": str(event.id),
                "cloudevents.event_type": event.type.value,
                BATCH: event.subject,
                TENANT: str(event.tenant),
            },
        ) as span:
            accepted = self._sink.publish(event)
            if not accepted:
                span.fail("unsent")
            return accepted

    def resend(self, *, older_than: float = 0.0, limit: int = 100) -> int:
        """Send what earlier attempts left in the outbox; return how many were accepted.

        Ends at the first refusal: a sink that hangs must not hold the scheduler for each event.
        """
        accepted = 0
        for event in self._outbox.waiting(limit, older_than):
            if not self.publish([event]):
                break
            accepted += 1
        return accepted

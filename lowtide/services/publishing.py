"""Getting recorded events to the sink."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowtide.domain.events import Event
    from lowtide.ports import EventSink, Outbox


class Publisher:
    """Sends events after their transaction; what the sink refuses stays in the outbox."""

    def __init__(self, sink: EventSink, outbox: Outbox) -> None:
        self._sink = sink
        self._outbox = outbox

    def publish(self, events: Iterable[Event]) -> int:
        """Send events that are already recorded; return how many were accepted."""
        accepted = 0
        for event in events:
            if not self._sink.publish(event):
                continue
            self._outbox.forget(event)
            accepted += 1
        return accepted

    def resend(self, *, older_than: float = 0.0, limit: int = 100) -> int:
        """Send what earlier attempts left in the outbox; return how many were accepted."""
        return self.publish(self._outbox.waiting(limit, older_than))

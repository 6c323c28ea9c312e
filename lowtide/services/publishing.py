"""Getting recorded events to the sink."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lowtide.domain.errors import LowtideError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowtide.domain.events import Event
    from lowtide.ports import EventSink, Outbox

_log = logging.getLogger(__name__)


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
            accepted += 1
            try:
                self._outbox.forget(event)
            except LowtideError as error:
                # What the caller did is committed. Sent twice is harmless, told that it failed not.
                _log.warning("event.kept", extra={"reason": error.message})
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

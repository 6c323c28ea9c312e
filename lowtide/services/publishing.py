"""Getting recorded events to the sink, beside the work that caused them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from lowtide.domain.errors import LowtideError
from lowtide.ports.tracing import BATCH, TENANT, SpanKind
from lowtide.services.scopes import UNTRACED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowtide.domain.events import Event
    from lowtide.ports import EventSink, Outbox
    from lowtide.ports.tracing import Tracer

BACKLOG: Final = 1000
"""Events that wait in one process; more are left to the scheduler."""
_SENDERS: Final = 8

_log = logging.getLogger(__name__)


class Publisher:
    """Sends recorded events in threads of its own, a few at a time, which end when none is left.

    Callers never wait for the sink: a broker that hands each event through to its subscriber answers
    once that has done its work, and one that hangs does not answer at all. What is refused, not sent
    before the process ends, or too much, is in the outbox: the scheduler sends it.
    """

    def __init__(self, sink: EventSink, outbox: Outbox, *, tracer: Tracer = UNTRACED) -> None:
        self._sink = sink
        self._outbox = outbox
        self._tracer = tracer
        self._waiting: deque[Event] = deque()
        self._senders = 0
        self._changed = threading.Condition()

    def publish(self, events: Iterable[Event]) -> None:
        """Have events sent that are already recorded. Never raises, and never waits for the sink."""
        with self._changed:
            for event in events:
                if len(self._waiting) >= BACKLOG:
                    _log.warning("event.left", extra={"event_id": str(event.id)})
                    continue
                self._waiting.append(event)
                if self._senders < _SENDERS:
                    self._start_sender()

    def resend(self) -> None:
        """Have events sent whose next attempt is due, each whatever becomes of the others."""
        with self._changed:
            room = BACKLOG - len(self._waiting)
        if room:
            self.publish(self._outbox.due(room))

    def drain(self, seconds: float) -> bool:
        """Wait until nothing is left to send, for at most `seconds`; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._senders, seconds)

    def _start_sender(self) -> None:
        try:
            threading.Thread(target=self._send_waiting, daemon=True, name="publisher").start()
        except RuntimeError as error:
            _log.warning("publisher.no_thread", extra={"reason": str(error)})
            return
        self._senders += 1

    def _send_waiting(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._senders -= 1
                    self._changed.notify_all()
                    return
                event = self._waiting.popleft()
            try:
                self._send(event)
            except Exception:  # noqa: BLE001 - the next event must not wait for a thread that is gone
                _log.exception("event.unsent", extra={"event_id": str(event.id)})

    def _send(self, event: Event) -> None:
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
            if not self._sink.publish(event):
                span.fail("unsent")
                return
        try:
            self._outbox.forget(event)
        except LowtideError as error:
            # Sent twice is harmless.
            _log.warning("event.kept", extra={"reason": error.for_log})

"""Publishing events to the broker, outside the transaction that records them in the outbox."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from cloudevents.conversion import to_binary
from cloudevents.http import CloudEvent

from lowtide.core.errors import LowtideError
from lowtide.events.model import EventType
from lowtide.telemetry.tracing import BATCH, TENANT, UNTRACED, SpanKind

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable

    import httpx

    from lowtide.events.model import Event, EventSink
    from lowtide.events.outbox import AuditOutbox, Outbox
    from lowtide.telemetry.tracing import TraceContext, Tracer


_log = logging.getLogger(__name__)


class HttpSink:
    """Post each event in binary content mode. Thread-safe."""

    def __init__(self, url: str, *, source: str, timeout: float) -> None:
        self._url = url
        self._source = source
        self._timeout = timeout
        self._client: httpx.Client | None = None
        self._client_lock = threading.Lock()

    def publish(self, event: Event) -> bool:
        """Send one event; return whether the sink accepted it. Never raises."""
        # Imported at the first event: a function that sends none starts faster.
        import httpx

        with self._client_lock:
            if self._client is None:
                self._client = httpx.Client(timeout=self._timeout)
            client = self._client
        attributes = {
            "id": str(event.id),
            "type": event.type.value,
            "source": self._source,
            "subject": event.subject,
            "datacontenttype": "application/json",
        }
        # As extension attributes they stay with the event. As headers of this request they let a
        # broker that traces its own work, and then overwrites the attributes, continue the trace.
        trace = _fields(event.trace)
        headers, body = to_binary(CloudEvent(attributes | trace, dict(event.data)))
        headers |= trace
        try:
            response = client.post(self._url, headers=headers, content=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            _log.warning("event.unsent", extra={"event_id": str(event.id), "reason": str(error)})
            return False
        if response.is_success:
            return True
        _log.warning(
            "event.refused", extra={"event_id": str(event.id), "status": response.status_code}
        )
        return False


def _fields(trace: TraceContext | None) -> dict[str, str]:
    if trace is None:
        return {}
    fields = {"traceparent": trace.traceparent, "tracestate": trace.state}
    return {name: value for name, value in fields.items() if value}


class NoSink:
    """The sink if none is configured: events wait in the outbox."""

    def publish(self, event: Event) -> bool:  # noqa: ARG002
        """Accept nothing."""
        return False


BACKLOG: Final = 1000
"""Max events waiting in a process; the scheduler sends further ones."""
_SENDERS: Final = 8


class Publisher:
    """Send recorded events in a few threads of its own, which end when no events are left.

    Callers never wait for the sink: a broker that forwards each event synchronously responds only
    when the subscriber is done, and a hanging one never. Events that are refused, not sent before
    the process ends, or over BACKLOG stay in the outbox, and the scheduler sends them.
    """

    def __init__(
        self, sink: EventSink, outbox: Outbox | AuditOutbox, *, tracer: Tracer = UNTRACED
    ) -> None:
        self._sink = sink
        self._outbox = outbox
        self._tracer = tracer
        self._waiting: deque[Event] = deque()
        # Those that wait or are being sent. A slow sink keeps them beyond their next attempt, when they
        # are due again: a second place in the queue would only keep it slow.
        self._known: set[uuid.UUID] = set()
        self._may_have_more = False
        self._senders = 0
        self._changed = threading.Condition()

    def publish(self, events: Iterable[Event]) -> None:
        """Queue recorded events for sending. Never raises, and never waits for the sink."""
        with self._changed:
            for event in events:
                if event.id in self._known:
                    continue
                if len(self._waiting) >= BACKLOG:
                    _log.warning("event.left", extra={"event_id": str(event.id)})
                    continue
                self._waiting.append(event)
                self._known.add(event.id)
                if self._senders < _SENDERS:
                    self._start_sender()

    def resend(self) -> None:
        """Queue events whose next attempt must run now; each is sent independently.

        If there are more than BACKLOG, the last sender fetches the next ones.
        """
        with self._changed:
            room = BACKLOG - len(self._waiting)
        if room:
            due = self._outbox.due(room)
            self._may_have_more = len(due) == room
            self.publish(due)

    def drain(self, seconds: float) -> bool:
        """Wait until no events are left, for at most `seconds`; return True if so."""
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
                may_have_more = self._may_have_more and not self._waiting
                if may_have_more:
                    self._may_have_more = False
                elif not self._waiting:
                    self._senders -= 1
                    self._changed.notify_all()
                    return
                else:
                    event = self._waiting.popleft()
            if may_have_more:
                self._resend_more()
                continue
            try:
                self._send(event)
            except Exception:  # noqa: BLE001 - the next event must not wait for a thread that is gone
                _log.exception("event.unsent", extra={"event_id": str(event.id)})
            finally:
                with self._changed:
                    self._known.discard(event.id)

    def _resend_more(self) -> None:
        try:
            self.resend()
        except LowtideError as error:
            _log.warning("events.not_read", extra={"reason": error.for_log})

    def _send(self, event: Event) -> None:
        attributes = {
            "cloudevents.event_id": str(event.id),
            "cloudevents.event_type": event.type.value,
        }
        if event.type is not EventType.AUDIT:
            attributes[BATCH] = event.subject
        if event.tenant is not None:
            attributes[TENANT] = str(event.tenant)
        # In the event's own trace, even if the scheduler sends it for another process.
        with self._tracer.span(
            f"send {event.type}",
            kind=SpanKind.PRODUCER,
            parent=event.trace,
            attributes=attributes,
        ) as span:
            if not self._sink.publish(event):
                span.fail("unsent")
                return
        try:
            self._outbox.forget(event)
        except LowtideError as error:
            # A second delivery is harmless.
            _log.warning("event.kept", extra={"reason": error.for_log})

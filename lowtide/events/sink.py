"""CloudEvents over HTTP to the broker's ingress."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from cloudevents.conversion import to_binary
from cloudevents.http import CloudEvent

if TYPE_CHECKING:
    import httpx

    from lowtide.domain.events import Event
    from lowtide.domain.traces import TraceContext

_log = logging.getLogger(__name__)


class HttpSink:
    """Port EventSink: one POST an event, in binary content mode. For use by many threads at once."""

    def __init__(self, url: str, *, source: str, timeout: float) -> None:
        self._url = url
        self._source = source
        self._timeout = timeout
        self._client: httpx.Client | None = None
        self._opening = threading.Lock()

    def publish(self, event: Event) -> bool:
        """Send one event; return whether the sink accepted it. Never raises."""
        # Imported at the first event: a function that sends none starts faster.
        import httpx

        with self._opening:
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
        # As extension attributes they stay with the event. As headers of this request, a broker that
        # traces its own work, and then writes its own attributes, goes on in the same trace.
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
    """Port EventSink where none is configured: events wait in the outbox."""

    def publish(self, event: Event) -> bool:  # noqa: ARG002
        """Accept nothing."""
        return False

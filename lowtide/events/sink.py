"""CloudEvents over HTTP to the sink that Knative's SinkBinding names."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cloudevents.conversion import to_binary
from cloudevents.http import CloudEvent

if TYPE_CHECKING:
    import httpx

    from lowtide.domain.events import Event

_log = logging.getLogger(__name__)


class HttpSink:
    """Port EventSink: one POST an event, in binary content mode."""

    def __init__(self, url: str, *, source: str, timeout: float) -> None:
        self._url = url
        self._source = source
        self._timeout = timeout
        self._client: httpx.Client | None = None

    def publish(self, event: Event) -> bool:
        """Send one event; return whether the sink accepted it. Never raises."""
        # Imported at the first event: a function that sends none starts faster.
        import httpx

        if self._client is None:
            self._client = httpx.Client(timeout=self._timeout)
        attributes = {
            "id": str(event.id),
            "type": event.type.value,
            "source": self._source,
            "subject": event.subject,
            "datacontenttype": "application/json",
        }
        if event.trace is not None:
            # Extension attributes, not headers of this request: they stay with the event.
            attributes["traceparent"] = event.trace.traceparent
            if event.trace.state:
                attributes["tracestate"] = event.trace.state
        headers, body = to_binary(CloudEvent(attributes, dict(event.data)))
        try:
            response = self._client.post(self._url, headers=headers, content=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            _log.warning("event.unsent", extra={"event_id": str(event.id), "reason": str(error)})
            return False
        if response.is_success:
            return True
        _log.warning(
            "event.refused", extra={"event_id": str(event.id), "status": response.status_code}
        )
        return False


class NoSink:
    """Port EventSink where none is configured: events wait in the outbox."""

    def publish(self, event: Event) -> bool:  # noqa: ARG002
        """Accept nothing."""
        return False

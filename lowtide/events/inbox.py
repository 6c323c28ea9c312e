"""Receiving CloudEvents: the trace and batch of an event, and responses for brokers."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from cloudevents.exceptions import GenericException
from flask import Response, current_app, has_app_context, request

from lowtide.core.errors import LowtideError
from lowtide.core.ids import BatchId, parse_batch_id
from lowtide.events.wire import MalformedEventError, read_event
from lowtide.telemetry.tracing import BATCH, SpanKind, parse_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloudevents.http import CloudEvent

    from lowtide.telemetry.tracing import Tracer


_log = logging.getLogger(__name__)
_LAST_SEGMENT = 2**31 - 1


def answer_without_body() -> None:
    """Make the function being loaded respond 204 to handled events, and 400 to malformed ones.

    A broker does not retry after a 400. It retries after the 503 for an event that failed with a
    known error; an unknown one is a 500, with its traceback in the log.
    """
    if has_app_context():
        current_app.before_request(_check_event)
        current_app.register_error_handler(GenericException, _bad_request)
        current_app.register_error_handler(LowtideError, _unavailable)
        current_app.after_request(_strip_body)


def _check_event() -> Response | None:
    if request.method != "POST":
        return None
    try:
        read_event(dict(request.headers), request.get_data())
    except MalformedEventError as error:
        return _bad_request(error)
    return None


def _bad_request(error: Exception) -> Response:
    _log.warning("event.refused", extra={"reason": str(error)[:200]})
    return Response(status=HTTPStatus.BAD_REQUEST)


def _unavailable(_: Exception) -> Response:
    return Response(status=HTTPStatus.SERVICE_UNAVAILABLE)


def _strip_body(response: Response) -> Response:
    if request.method != "POST":
        return response
    if response.status_code == HTTPStatus.OK:
        response.status_code = HTTPStatus.NO_CONTENT
    response.set_data(b"")
    response.headers.pop("Content-Type", None)
    return response


@contextmanager
def received(event: CloudEvent, tracer: Tracer) -> Iterator[None]:
    """Run a block in a span, as the processing of an event.

    The span continues the trace in the event's extension attributes `traceparent` and `tracestate`.
    """
    event_attributes = event.get_attributes()
    type_ = str(event_attributes["type"])
    attributes = {
        "cloudevents.event_id": str(event_attributes["id"]),
        "cloudevents.event_source": str(event_attributes["source"]),
        "cloudevents.event_type": type_,
    }
    subject = str(event_attributes.get("subject") or "")
    if parse_batch_id(subject) is not None:
        attributes[BATCH] = subject
    with tracer.span(
        f"process {type_}",
        kind=SpanKind.CONSUMER,
        parent=parse_trace(event_attributes.get("traceparent"), event_attributes.get("tracestate")),
        attributes=attributes,
    ):
        try:
            yield
        except LowtideError as error:
            _log.warning("event.failed", extra={"event_type": type_, "reason": error.for_log})
            raise
        except Exception as error:
            _log.error("event.failed", extra={"event_type": type_, "reason": type(error).__name__})
            raise


def segment_of(event: CloudEvent) -> int | None:
    """Return the number of the segment that an event is about; None if it is about a batch."""
    data = event.get_data()
    number = data.get("segment") if isinstance(data, dict) else None
    return number if type(number) is int and 0 < number <= _LAST_SEGMENT else None


def batch_of(event: CloudEvent) -> BatchId | None:
    """Return the batch of an event.

    An event without a valid batch id is logged and yields None: it would fail the same way at each
    retry, so it is accepted.
    """
    data = event.get_data()
    text = data.get("batch_id") if isinstance(data, dict) else None
    batch = parse_batch_id(text) if isinstance(text, str) else None
    if batch is None:
        _log.warning("event.malformed", extra={"event_id": str(event["id"])[:100]})
    return batch

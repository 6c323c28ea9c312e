"""Receiving CloudEvents: where the work that they announce belongs, and what they are about."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lowtide.domain.errors import LowtideError
from lowtide.domain.ids import BatchId, parse_batch_id
from lowtide.domain.traces import parse_trace
from lowtide.ports.tracing import BATCH, SpanKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloudevents.http import CloudEvent

    from lowtide.ports.tracing import Tracer

_log = logging.getLogger(__name__)


@contextmanager
def received(event: CloudEvent, tracer: Tracer) -> Iterator[None]:
    """Let a block be the work that an event announces.

    It continues the trace that the event's extension attributes `traceparent` and `tracestate` name.
    """
    given = event.get_attributes()
    type_ = str(given["type"])
    attributes = {
        "cloudevents.event_id": str(given["id"]),
        "cloudevents.event_source": str(given["source"]),
        "cloudevents.event_type": type_,
    }
    subject = str(given.get("subject") or "")
    if parse_batch_id(subject) is not None:
        attributes[BATCH] = subject
    with tracer.span(
        f"process {type_}",
        kind=SpanKind.CONSUMER,
        parent=parse_trace(given.get("traceparent"), given.get("tracestate")),
        attributes=attributes,
    ):
        try:
            yield
        except LowtideError as error:
            # The framework logs what comes out of here too, but no longer knows whose it is.
            _log.warning("event.failed", extra={"event_type": type_, "reason": error.for_log})
            raise
        except Exception as error:
            _log.error("event.failed", extra={"event_type": type_, "reason": type(error).__name__})
            raise


def batch_of(event: CloudEvent) -> BatchId | None:
    """Return the batch that an event is about.

    None for an event that names none: it would fail the same way at every retry, so it is logged
    and taken.
    """
    data = event.get_data()
    text = data.get("batch_id") if isinstance(data, dict) else None
    batch = parse_batch_id(text) if isinstance(text, str) else None
    if batch is None:
        _log.warning("event.malformed", extra={"event_id": str(event["id"])[:100]})
    return batch

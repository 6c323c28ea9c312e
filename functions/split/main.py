"""`dev.lowtide.batch.created` and `….segment.created`: split a file into queued requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide.app import App
from lowtide.events.inbox import answer_without_body, batch_of, received, segment_of
from lowtide.events.model import EventType

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent

app = App.of_function()
answer_without_body()


@functions_framework.cloud_event
def split(event: CloudEvent) -> None:
    """Handle one event."""
    with received(event, app.tracer):
        if event["type"] == EventType.SEGMENT_CREATED:
            segment = segment_of(event)
            if segment is not None:
                app.splitter.split_segment(*segment)
        elif (batch := batch_of(event)) is not None:
            app.splitter.split(batch)

"""Write the files of a drained batch and close it; copy them to a bucket.

The events are `dev.lowtide.batch.drained`, `….segment.drained` and `….export.requested`.
"""

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
def finalize(event: CloudEvent) -> None:
    """Handle one event."""
    with received(event, app.tracer):
        batch = batch_of(event)
        if batch is None:
            return
        if event["type"] == EventType.EXPORT_REQUESTED:
            app.exporter.export(batch)
        else:
            app.finalizer.finalize(batch, segment_of(event))

"""Split the file of a batch into queued requests; import it first if it is in a bucket.

The events are `dev.lowtide.batch.created` and `….segment.created`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide.app import App
from lowtide.events.inbox import answer_without_body, batch_of, received, segment_of

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent

app = App.of_function()
answer_without_body()


@functions_framework.cloud_event
def split(event: CloudEvent) -> None:
    """Handle one event."""
    with received(event, app.tracer):
        batch = batch_of(event)
        if batch is None:
            return
        segment = segment_of(event)
        if segment is not None:
            app.splitter.split_segment(batch, segment)
        elif app.importer.prepare(batch):
            app.splitter.split(batch)

"""`dev.lowtide.batch.drained` and `dev.lowtide.segment.drained`: write files, close the batch."""

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
def finalize(event: CloudEvent) -> None:
    """Handle one event."""
    with received(event, app.tracer):
        batch = batch_of(event)
        if batch is not None:
            app.finalizer.finalize(batch, segment_of(event))

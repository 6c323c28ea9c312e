"""`dev.lowtide.batch.created`: import the batch's file if it is in a bucket, and queue its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide.app import App
from lowtide.events.inbox import answer_without_body, batch_of, received

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent

app = App.of_function()
answer_without_body()


@functions_framework.cloud_event
def split(event: CloudEvent) -> None:
    """Handle one event."""
    with received(event, app.tracer):
        batch = batch_of(event)
        if batch is not None and app.importer.prepare(batch):
            app.splitter.split(batch)

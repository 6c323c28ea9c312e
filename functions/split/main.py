"""`dev.lowtide.batch.created`: split the batch's file into queued requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide import wiring
from lowtide.events.answers import answer_without_body
from lowtide.events.inbox import batch_of, received

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent

answer_without_body()


@functions_framework.cloud_event
def split(event: CloudEvent) -> None:
    """Handle one event."""
    with received(event, wiring.tracer()):
        batch = batch_of(event)
        if batch is not None:
            wiring.splitter().split(batch)

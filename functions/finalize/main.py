"""`dev.lowtide.batch.drained`: write the output and error files and close the batch."""

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
def finalize(event: CloudEvent) -> None:
    """Handle one event."""
    with received(event, wiring.tracer()):
        batch = batch_of(event)
        if batch is not None:
            wiring.finalizer().finalize(batch)

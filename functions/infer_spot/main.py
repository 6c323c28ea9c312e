"""Any CloudEvent wakes this spot worker; its pull loop does the work, with or without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide import wiring
from lowtide.domain.pools import Pool
from lowtide.events.answers import answer_without_body
from lowtide.events.inbox import received
from lowtide.pull_loop import PULL_LOOP

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent

answer_without_body()
PULL_LOOP.serve(Pool.SPOT)


@functions_framework.cloud_event
def infer_spot(event: CloudEvent) -> None:
    """Handle one event."""
    with received(event, wiring.tracer()):
        PULL_LOOP.wake()

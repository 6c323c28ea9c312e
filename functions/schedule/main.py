"""A PingSource's tick: one round of the scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide import wiring
from lowtide.events.inbox import received
from lowtide.metrics import scheduler as metrics
from lowtide.metrics import vitals

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent


@functions_framework.cloud_event
def schedule(event: CloudEvent) -> None:
    """Handle one tick."""
    with received(event, wiring.tracer()):
        metrics.ticked(wiring.scheduler().tick())
        vitals.measured(wiring.vitals().read())

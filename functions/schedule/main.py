"""A PingSource's event: one tick of the scheduler."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import functions_framework

from lowtide.app import App
from lowtide.events.inbox import answer_without_body, received
from lowtide.scheduler.tick import ticked
from lowtide.status import metrics

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent

_log = logging.getLogger("lowtide.schedule")
app = App.of_function()
answer_without_body()


@functions_framework.cloud_event
def schedule(event: CloudEvent) -> None:
    """Handle one tick."""
    with received(event, app.tracer):
        ticked(app.scheduler.tick())
        _measure()


def _measure() -> None:
    """Measure what alerts watch; a failure here must not make the whole tick run again."""
    try:
        metrics.measured(app.snapshots.read(for_metrics=True))
    except Exception:  # noqa: BLE001 - what an answer of 500 would repeat is done
        _log.exception("snapshot.not_read")

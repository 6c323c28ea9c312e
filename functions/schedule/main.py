"""A PingSource's tick: one round of the scheduler."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import functions_framework

from lowtide import wiring
from lowtide.events.answers import answer_without_body
from lowtide.events.inbox import received
from lowtide.metrics import scheduler as metrics
from lowtide.metrics import vitals

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent

_log = logging.getLogger("lowtide.schedule")
answer_without_body()


@functions_framework.cloud_event
def schedule(event: CloudEvent) -> None:
    """Handle one tick."""
    with received(event, wiring.tracer()):
        metrics.ticked(wiring.scheduler().tick())
        _measure()


def _measure() -> None:
    """Look at what alerts look at: a tick that failed for it would do all its work again."""
    try:
        vitals.measured(wiring.vitals().read())
    except Exception:  # noqa: BLE001 - what an answer of 500 would repeat is done
        _log.exception("vitals.not_read")

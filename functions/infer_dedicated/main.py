"""A dedicated worker: its pull loop does the work, and any CloudEvent wakes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide.app import App
from lowtide.core.pools import Pool
from lowtide.events.inbox import answer_without_body, received

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent

app = App.of_function()
answer_without_body()
pull_loop = app.pull(Pool.DEDICATED)


@functions_framework.cloud_event
def infer_dedicated(event: CloudEvent) -> None:
    """Handle one event."""
    with received(event, app.tracer):
        pull_loop.wake()

"""PingSources: a CloudEvent to a sink on a cron schedule."""

from __future__ import annotations

import asyncio
import logging
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from croniter import croniter

if TYPE_CHECKING:
    from lowtide.local.dispatcher import Sender
    from lowtide.local.manifests import PingSource

TYPE = "dev.knative.sources.ping"
TIMEOUT = 30.0  # seconds that one tick may take before the next is sent beside it
logger = logging.getLogger(__name__)


def next_tick(schedule: str, after: datetime) -> datetime:
    """Return the first time after `after` that a cron schedule of five or six fields names.

    With six fields the first is seconds, as in Knative.
    """
    found: datetime = croniter(schedule, after, second_at_beginning=True).get_next(datetime)
    return found


async def tick(ping: PingSource, sender: Sender) -> None:
    """Send events until cancelled; a tick is skipped while the one before is in flight."""
    zone = ZoneInfo(ping.spec.timezone)
    previous: asyncio.Task[None] | None = None
    due = next_tick(ping.spec.schedule, datetime.now(zone))
    while True:
        await asyncio.sleep(max(0.0, (due - datetime.now(zone)).total_seconds()))
        if previous is None or previous.done():
            previous = asyncio.create_task(_send(ping, sender))
        # Ticks missed while the machine slept are not made up for.
        due = next_tick(ping.spec.schedule, max(due, datetime.now(zone)))


async def _send(ping: PingSource, sender: Sender) -> None:
    headers = {
        "ce-specversion": "1.0",
        "ce-id": str(uuid.uuid4()),
        "ce-type": TYPE,
        "ce-source": f"/apis/v1/namespaces/{ping.metadata.namespace}"
        f"/pingsources/{ping.metadata.name}",
        "ce-time": datetime.now(UTC).isoformat(),
    }
    if ping.spec.content_type:
        headers["content-type"] = ping.spec.content_type
    status = await sender.send(ping.spec.sink, headers, ping.spec.data.encode(), TIMEOUT)
    if status is None or not 200 <= status < 300:
        logger.warning("ping %s: answered %s", ping.metadata.name, status or "by nobody")

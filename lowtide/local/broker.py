"""Broker, Triggers and PingSources on one machine: `python -m lowtide.local.broker`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import uuid
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec
from aiohttp import ClientSession, TCPConnector, web
from croniter import croniter
from sqlalchemy.exc import SQLAlchemyError

from lowtide.database.connections import connect
from lowtide.events.wire import MalformedEventError, read_event
from lowtide.local.deliveries import Deliveries
from lowtide.local.dispatcher import Sender, TriggerLoop
from lowtide.local.files import Endpoints
from lowtide.local.manifests import PingSource, Trigger
from lowtide.local.options import runtime_arguments
from lowtide.local.ports import HOST
from lowtide.local.workloads import load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lowtide.events.wire import WireEvent


TYPE = "dev.knative.sources.ping"
TIMEOUT = 30.0  # seconds before an unanswered tick is abandoned and the next may be sent
logger = logging.getLogger(__name__)


def next_tick(schedule: str, after: datetime) -> datetime:
    """Return the first time after `after` that matches a cron schedule.

    A schedule has five fields, or six with seconds first, as in Knative.
    """
    next_time: datetime = croniter(schedule, after, second_at_beginning=True).get_next(datetime)
    return next_time


async def tick(ping: PingSource, sender: Sender) -> None:
    """Send events until cancelled; skip a tick while the previous one is in flight."""
    zone = ZoneInfo(ping.spec.timezone)
    previous: asyncio.Task[None] | None = None
    due = next_tick(ping.spec.schedule, datetime.now(zone))
    while True:
        await asyncio.sleep(max(0.0, (due - datetime.now(zone)).total_seconds()))
        if previous is None or previous.done():
            previous = asyncio.create_task(_send(ping, sender))
        # Ticks missed while the machine slept are not sent later.
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
        logger.warning("ping %s: %s", ping.metadata.name, status or "no response")


DATABASE_VARIABLE = "BROKER_DATABASE_URL"
SYNCHRONOUS_VARIABLE = "BROKER_SYNCHRONOUS"
_LARGEST_EVENT = 1 << 20


class Ingress:
    """HTTP endpoint that stores events, in binary or structured mode."""

    def __init__(self, deliveries: Deliveries, loops: Sequence[TriggerLoop]) -> None:
        self._deliveries = deliveries
        self._loops = loops

    async def accept(self, request: web.Request) -> web.Response:
        """Answer 400 for a body that is not a CloudEvent, else the answer of `take`."""
        try:
            event = read_event(request.headers, await request.read())
        except MalformedEventError as error:
            return web.Response(status=400, text=f"Not a CloudEvent: {error}")
        return await self.take(
            event, [loop for loop in self._loops if loop.accepts(event.attributes)]
        )

    async def take(self, event: WireEvent, loops: Sequence[TriggerLoop]) -> web.Response:
        """Store the event; answer 202, or 503 without a database."""
        id_ = event.attributes["id"]
        try:
            await asyncio.to_thread(
                self._deliveries.add,
                id_,
                event.attributes["source"],
                msgspec.json.encode(event.headers()).decode(),
                event.data,
                [loop.name for loop in loops],
            )
        except SQLAlchemyError as error:
            logger.warning("event %s not stored: %s", id_, error)
            return web.Response(status=503, text="The database is not responding; send it again.")
        for loop in loops:
            loop.wake()
        return web.Response(status=202)


class SynchronousIngress(Ingress):
    """HTTP endpoint that delivers events without storing them, like Knative's InMemoryChannel.

    A client that disconnects cancels the deliveries of its event. Source: Knative eventing
    `pkg/channel/fanout/fanout_event_handler.go`.
    """

    async def take(self, event: WireEvent, loops: Sequence[TriggerLoop]) -> web.Response:
        """Deliver the event; answer 202 if every subscriber accepted it, else 500."""
        accepted = await asyncio.gather(
            *(loop.hand_through(event.headers(), event.data) for loop in loops)
        )
        return web.Response(status=202 if all(accepted) else 500)


async def _ready(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def serve(
    root: Path, data_dir: Path, port: int, database_url: str, ingress: type[Ingress]
) -> None:
    """Serve until SIGTERM."""
    manifests = load(root)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    deliveries = Deliveries(connect(database_url, application="lowtide-broker"))
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            ClientSession(connector=TCPConnector(limit=0, force_close=True))
        )
        sender = Sender(session, Endpoints(data_dir))
        loops = [TriggerLoop(trigger, deliveries, sender) for trigger in manifests.all(Trigger)]
        await asyncio.to_thread(deliveries.create)
        await asyncio.to_thread(deliveries.discard_unknown, [loop.name for loop in loops])
        application = web.Application(client_max_size=_LARGEST_EVENT)
        application.router.add_post("/", ingress(deliveries, loops).accept)
        application.router.add_get("/health/ready", _ready)
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, HOST, port, reuse_address=True, shutdown_timeout=2).start()
        tasks = [asyncio.create_task(loop.run()) for loop in loops]
        tasks += [asyncio.create_task(tick(ping, sender)) for ping in manifests.all(PingSource)]
        stopping = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        if failed := done - {stopping}:
            # A loop ends only by an error: the supervisor restarts the whole process.
            raise SystemExit(f"broker: {failed.pop().exception()!r}")


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(message)s")
    arguments = runtime_arguments("The CloudEvents broker of the local runtime.")
    asyncio.run(
        serve(
            arguments.root,
            arguments.data_dir,
            arguments.port,
            os.environ[DATABASE_VARIABLE],
            SynchronousIngress if os.environ.get(SYNCHRONOUS_VARIABLE) else Ingress,
        )
    )

"""Delivers stored events: one loop per Trigger, so that a slow subscriber delays only itself."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientTimeout
from sqlalchemy.exc import SQLAlchemyError

from lowtide.local.retries import is_retried, retry_policy

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from lowtide.local.deliveries import Deliveries, Delivery
    from lowtide.local.endpoints import Endpoints
    from lowtide.local.manifests import Destination, Trigger

IN_FLIGHT = 16  # deliveries of one Trigger at a time
_DATABASE_BACKOFF = 0.5
_LONGEST_SLEEP = 60.0
logger = logging.getLogger(__name__)


class Sender:
    """Posts events in binary mode to a destination of the manifests."""

    def __init__(self, session: ClientSession, endpoints: Endpoints) -> None:
        self._session = session
        self._endpoints = endpoints

    async def send(
        self, destination: Destination, headers: dict[str, str], body: bytes, limit: float
    ) -> int | None:
        """Return the status answered; None when nobody answered within `limit` seconds."""
        address = destination.uri or ""
        if destination.ref is not None:
            base = self._endpoints.pick(destination.ref.name)
            if base is None:
                return None
            address = base + address
        try:
            async with self._session.post(
                address,
                data=body,
                headers=headers,
                timeout=ClientTimeout(total=limit),
                allow_redirects=False,
            ) as response:
                await response.read()
                return response.status
        except (ClientError, OSError, TimeoutError, ValueError):
            # ValueError: an attribute that cannot be a header; it will never be deliverable.
            return None


class TriggerLoop:
    """Delivers one Trigger's events; `wake` after storing one."""

    def __init__(self, trigger: Trigger, deliveries: Deliveries, sender: Sender) -> None:
        self.name = trigger.metadata.name
        self._spec = trigger.spec
        self._policy = retry_policy(trigger.spec.delivery)
        self._deliveries = deliveries
        self._sender = sender
        self._woken = asyncio.Event()
        self._held: dict[int, asyncio.Task[None]] = {}

    def accepts(self, attributes: dict[str, str]) -> bool:
        """Whether every filter attribute has exactly the event's value."""
        return all(
            attributes.get(name) == value for name, value in self._spec.filter.attributes.items()
        )

    def wake(self) -> None:
        """Look for due deliveries now."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled; between events it sleeps and asks the database nothing."""
        while True:
            self._woken.clear()
            try:
                sleep = await self._start_due()
            except SQLAlchemyError as error:
                logger.warning("%s: the database does not answer: %s", self.name, error)
                sleep = _DATABASE_BACKOFF
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), sleep)

    async def _start_due(self) -> float:
        """Start what is due, and return the seconds until the next."""
        room = IN_FLIGHT - len(self._held)
        if room <= 0:
            return _LONGEST_SLEEP
        found = await asyncio.to_thread(self._deliveries.due, self.name, [*self._held], room)
        for delivery in found:
            if delivery.wait > 0:
                return min(delivery.wait, _LONGEST_SLEEP)
            task = asyncio.create_task(self._deliver(delivery))
            self._held[delivery.id] = task
        return _LONGEST_SLEEP

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            status = await self._sender.send(
                self._spec.subscriber, dict(delivery.headers), delivery.body, self._policy.timeout
            )
            if status is not None and 200 <= status < 300:
                await asyncio.to_thread(self._deliveries.remove, delivery.id)
            else:
                await self._failed(delivery, status)
        except SQLAlchemyError as error:
            # The row is as it was: the event is delivered once more, which handlers allow.
            logger.warning("%s: outcome not stored: %s", self.name, error)
            await asyncio.sleep(_DATABASE_BACKOFF)
        finally:
            del self._held[delivery.id]
            self.wake()

    async def _failed(self, delivery: Delivery, status: int | None) -> None:
        wait = self._policy.wait(delivery.attempt) if is_retried(status) else None
        if wait is not None:
            await asyncio.to_thread(self._deliveries.postpone, delivery.id, wait)
            return
        answer = "no answer" if status is None else f"status {status}"
        sink = self._spec.delivery.dead_letter_sink
        if sink is not None:
            await self._sender.send(
                sink, dict(delivery.headers), delivery.body, self._policy.timeout
            )
        # Without retries an event is a mere hint, and nobody being there to take it is expected.
        level = logging.WARNING if self._policy.retries else logging.DEBUG
        logger.log(level, "%s: %s given up: %s", self.name, delivery.event_id, answer)
        await asyncio.to_thread(self._deliveries.remove, delivery.id)

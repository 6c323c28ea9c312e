"""Event delivery to subscribers: one loop per Trigger, with Knative's retries."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientTimeout
from sqlalchemy.exc import SQLAlchemyError

from lowtide.events.wire import MalformedEventError, read_event
from lowtide.local.options import BadManifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import ClientSession

    from lowtide.local.deliveries import Deliveries, Delivery
    from lowtide.local.files import Endpoints
    from lowtide.local.manifests import Delivery as DeliverySpec
    from lowtide.local.manifests import Destination, Trigger


_SHAPE = re.compile(
    r"P(?:(?P<d>\d+(?:\.\d+)?)D)?"
    r"(?:T(?:(?P<h>\d+(?:\.\d+)?)H)?(?:(?P<m>\d+(?:\.\d+)?)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?"
)
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def parse(text: str) -> float:
    """Return the seconds of an ISO 8601 duration such as `PT0.5S`, `PT10M` or `P1DT2H`.

    Raises BadManifest for other formats, years, months and weeks included.
    """
    match = _SHAPE.fullmatch(text)
    if match is None or not any(match.groupdict().values()):
        raise BadManifest(f"{text!r} is not an ISO 8601 duration without years, months or weeks")
    return sum(float(value) * _SECONDS[unit] for unit, value in match.groupdict().items() if value)


_RETRIED_BELOW_500 = frozenset({404, 408, 409, 429})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `retries` attempts after the first; `delay` and `timeout` in seconds."""

    retries: int
    delay: float
    exponential: bool
    timeout: float

    def wait(self, attempt: int) -> float | None:
        """Return the seconds until the retry after `attempt` (from 0); None for no retry."""
        if attempt >= self.retries:
            return None
        return self.delay * (2**attempt if self.exponential else attempt)


def retry_policy(delivery: DeliverySpec) -> RetryPolicy:
    """Return the policy of a delivery spec; raises BadManifest for a bad duration."""
    return RetryPolicy(
        retries=delivery.retry,
        delay=parse(delivery.backoff_delay),
        exponential=delivery.backoff_policy == "exponential",
        timeout=parse(delivery.timeout),
    )


def is_retried(status: int | None) -> bool:
    """Return True if a status, or None for no response, is retried."""
    return status is None or status >= 500 or status in _RETRIED_BELOW_500


IN_FLIGHT = 16  # deliveries of one Trigger at a time
_DATABASE_BACKOFF = 0.5
_LONGEST_SLEEP = 60.0
logger = logging.getLogger(__name__)


class Sender:
    """HTTP client that posts events in binary mode to destinations of the manifests."""

    def __init__(self, session: ClientSession, endpoints: Endpoints) -> None:
        self._session = session
        self._endpoints = endpoints

    async def send(
        self, destination: Destination, headers: dict[str, str], body: bytes, limit: float
    ) -> int | None:
        """Return the response status; None without a response in `limit` seconds.

        A response with a body that is not an event counts as 502.
        """
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
                return _effective_status(response.status, response.headers, await response.read())
        except (ClientError, OSError, TimeoutError, ValueError, TypeError) as error:
            # ValueError and TypeError: an attribute is not a valid header.
            logger.debug("no response from %s: %r", address, error)
            return None


class TriggerLoop:
    """The delivery loop of one Trigger; call `wake` after storing an event."""

    def __init__(self, trigger: Trigger, deliveries: Deliveries, sender: Sender) -> None:
        self.name = trigger.metadata.name
        self._spec = trigger.spec
        self._policy = retry_policy(trigger.spec.delivery)
        self._deliveries = deliveries
        self._sender = sender
        self._wake_event = asyncio.Event()
        self._in_flight: dict[int, asyncio.Task[None]] = {}

    def accepts(self, attributes: Mapping[str, str]) -> bool:
        """Return True if every filter attribute equals the event's."""
        return all(
            attributes.get(name) == value for name, value in self._spec.filter.attributes.items()
        )

    def wake(self) -> None:
        """Check for new deliveries now."""
        self._wake_event.set()

    async def hand_through(self, headers: dict[str, str], body: bytes) -> bool:
        """Deliver an event without storing it.

        Return True if the subscriber or the dead letter sink accepted it. Returns after the last
        attempt; cancelling the caller ends the delivery.
        """
        attempt = 0
        while True:
            status = await self._attempt(headers, body)
            if _is_accepted(status):
                return True
            wait = self._policy.wait(attempt) if is_retried(status) else None
            if wait is None:
                return await self._give_up(headers, body, status)
            attempt += 1
            await asyncio.sleep(wait)

    async def run(self) -> None:
        """Deliver until cancelled; sleeps between events without polling the database."""
        while True:
            self._wake_event.clear()
            try:
                sleep = await self._start_due()
            except SQLAlchemyError as error:
                logger.warning("%s: the database is not responding: %s", self.name, error)
                sleep = _DATABASE_BACKOFF
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake_event.wait(), sleep)

    async def _start_due(self) -> float:
        """Start the deliveries whose time has come, and return the seconds until the next."""
        free = IN_FLIGHT - len(self._in_flight)
        if free <= 0:
            return _LONGEST_SLEEP
        due = await asyncio.to_thread(self._deliveries.due, self.name, [*self._in_flight], free)
        for delivery in due:
            if delivery.wait > 0:
                return min(delivery.wait, _LONGEST_SLEEP)
            task = asyncio.create_task(self._deliver(delivery))
            self._in_flight[delivery.id] = task
        return _LONGEST_SLEEP

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            status = await self._attempt(dict(delivery.headers), delivery.body)
            if _is_accepted(status):
                await asyncio.to_thread(self._deliveries.remove, delivery.id)
            else:
                await self._failed(delivery, status)
        except SQLAlchemyError as error:
            # The row is unchanged: the event is delivered again, and handlers are idempotent.
            logger.warning("%s: outcome not stored: %s", self.name, error)
            await asyncio.sleep(_DATABASE_BACKOFF)
        finally:
            del self._in_flight[delivery.id]
            self.wake()

    async def _failed(self, delivery: Delivery, status: int | None) -> None:
        wait = self._policy.wait(delivery.attempt) if is_retried(status) else None
        if wait is not None:
            await asyncio.to_thread(self._deliveries.postpone, delivery.id, wait)
            return
        await self._give_up(dict(delivery.headers), delivery.body, status)
        await asyncio.to_thread(self._deliveries.remove, delivery.id)

    async def _attempt(self, headers: dict[str, str], body: bytes) -> int | None:
        return await self._sender.send(self._spec.subscriber, headers, body, self._policy.timeout)

    async def _give_up(self, headers: dict[str, str], body: bytes, status: int | None) -> bool:
        """Give up an event; return True if a dead letter sink accepted it."""
        answer = "no response" if status is None else f"status {status}"
        # An event without retries is only a hint: an absent subscriber is expected.
        level = logging.WARNING if self._policy.retries else logging.DEBUG
        logger.log(level, "%s: %s given up: %s", self.name, headers.get("ce-id"), answer)
        sink = self._spec.delivery.dead_letter_sink
        return sink is not None and _is_accepted(
            await self._sender.send(sink, headers, body, self._policy.timeout)
        )


def _effective_status(status: int, headers: Mapping[str, str], body: bytes) -> int:
    """Return the status that a response counts as."""
    if not _is_accepted(status) or not body:
        return status
    try:
        read_event(headers, body)
    except MalformedEventError:
        logger.warning("response body is not a CloudEvent: treated as 502")
        return HTTPStatus.BAD_GATEWAY
    logger.warning("response is an event: this broker does not forward replies")
    return status


def _is_accepted(status: int | None) -> bool:
    return status is not None and 200 <= status < 300

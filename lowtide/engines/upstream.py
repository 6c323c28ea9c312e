"""An engine on any OpenAI-compatible HTTP server."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from lowtide.engines.breaker import Probed
from lowtide.engines.connection import Connection, Origin
from lowtide.engines.flow import Arrivals, ByteBudget, Slots
from lowtide.engines.load import LoadMeter, read_load
from lowtide.engines.model import probed_by
from lowtide.engines.outcomes import Answered, NoAnswer, Unanswered
from lowtide.engines.receiving import BrokenReplyError, Intake
from lowtide.engines.replies import outcome_of
from lowtide.engines.telemetry import read_telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lowtide.engines.load import EngineLoad
    from lowtide.engines.model import EngineRequest, Ping
    from lowtide.engines.outcomes import Outcome
    from lowtide.engines.replies import Reply
    from lowtide.engines.telemetry import EngineTelemetry


MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024

_CONNECT_TIMEOUT = 10.0
# uvicorn, under vLLM and most others, drops idle connections after 5 s: close them before.
_KEEP_ALIVE = 4.0
_PROBE_TIMEOUT = 10.0
_METRICS_TIMEOUT = 2.0
_LONGEST_LIST: Final = 4 << 20
# A path unknown to the upstream, or closed to a key that may only infer.
_INCONCLUSIVE: Final = frozenset({403, 404, 405, 501})
_LACKS_SCOPE: Final = b"Missing scopes"
"""OpenAI's 401 for a restricted key that may not list models."""


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class UpstreamEngine:
    """Posts each request to `base_url` + endpoint, over kept connections.

    `timeout` is in seconds for one request, including connecting but not the wait for one of the
    `concurrency` slots; `meter` measures the requests in these. A redirect is followed only if it
    adds or removes a trailing slash, and is an answer otherwise; proxies are not used. Raises
    ValueError for a URL that is not http(s).
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str = "",
        timeout: float = 600.0,
        concurrency: int = 32,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        budget: ByteBudget | None = None,
        meter: LoadMeter | None = None,
    ) -> None:
        self._origin = Origin.parse(base_url, api_key.strip())
        self._tls = ssl.create_default_context() if self._origin.encrypted else None
        self._timeout = timeout
        self._concurrency = concurrency
        self._max_response_bytes = max_response_bytes
        self._budget = budget or ByteBudget(sys.maxsize)
        self._intake = Intake(self._budget)
        self._slots = Slots(concurrency)
        self._meter = meter or LoadMeter()
        self._idle: list[Connection] = []
        self._calls: list[tuple[Arrivals, list[asyncio.Task[None]]]] = []

    async def run(
        self, requests: Sequence[EngineRequest]
    ) -> AsyncIterator[Sequence[tuple[int, Outcome]]]:
        """Yield outcomes as the upstream answers; closing the iterator cancels the rest."""
        arrivals = Arrivals(len(requests), self._budget)
        queue = deque(requests)
        # Each body is freed when its request ends.
        del requests
        tasks = [
            asyncio.create_task(self._work(queue, arrivals))
            for _ in range(min(len(queue), self._concurrency))
        ]
        call = (arrivals, tasks)
        self._calls.append(call)
        try:
            async for group in arrivals.groups():
                yield group
                del group
        finally:
            self._calls.remove(call)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            arrivals.close()

    async def probe(self, ping: Ping | None = None) -> Probed:
        """Send `GET /health`, then `GET /v1/models`, then `ping`.

        A path that is unknown to the upstream, or closed to the key, proves nothing.
        """
        for path in ("/health", "/v1/models"):
            outcome = await self._send_probe(self._origin.get(path), any_body=True)
            # A gateway without a health check may reject or redirect it like any unknown path.
            status = outcome.status_code if isinstance(outcome, Answered) else 500
            if status in _INCONCLUSIVE or (path == "/health" and status < 500):
                continue
            if isinstance(outcome, Answered) and _LACKS_SCOPE in outcome.body:
                continue
            if not (probed := probed_by(outcome, f"GET {path}")).well:
                return probed
        body = None if ping is None else ping.body()
        if ping is None or body is None:
            return Probed(well=True)
        outcome = await self._send_probe(self._origin.post(ping.endpoint, len(body)), body)
        return probed_by(outcome, f"POST {ping.endpoint}")

    def limit(self, in_flight: int) -> None:
        """Set the max number of requests in flight; those already running continue."""
        self._slots.limit(in_flight)

    async def load(self) -> EngineLoad | None:
        """Return the load that `GET /metrics` reports."""
        return read_load(await self._metrics())

    async def telemetry(self) -> EngineTelemetry | None:
        """Return the telemetry that `GET /metrics` reports."""
        return read_telemetry(await self._metrics())

    async def models(self) -> Sequence[str]:
        """Return the ids that `GET /v1/models` lists; empty if it fails."""
        try:
            reply = await self._exchange(self._origin.get("/v1/models"), b"")
            if reply.status != 200 or len(reply.body) > _LONGEST_LIST:
                return ()
            return [model.id for model in msgspec.json.decode(reply.body, type=_Models).data]
        except (OSError, BrokenReplyError, msgspec.MsgspecError, UnicodeError):
            return ()

    async def close(self) -> None:
        """Close the connections; running calls end without the missing outcomes."""
        for arrivals, tasks in self._calls:
            for task in tasks:
                task.cancel()
            arrivals.abandon()
        while self._idle:
            self._idle.pop().close()

    async def _work(self, queue: deque[EngineRequest], arrivals: Arrivals) -> None:
        """Send requests of one call until none is left; each call runs several of these tasks."""
        while queue:
            request = queue.popleft()
            async with self._slots:
                outcome = await self._measured(request)
            arrivals.add(request.key, outcome)
            del request, outcome

    async def _measured(self, request: EngineRequest) -> Outcome:
        began, outcome = self._meter.begin(), None
        try:
            outcome = await self._send(request)
        finally:
            self._meter.end(began, outcome)
        return outcome

    async def _send(self, request: EngineRequest) -> Outcome:
        try:
            head = self._origin.post(request.endpoint, len(request.body), request.trace)
        except (UnicodeError, ValueError) as error:
            return Unanswered(NoAnswer.UNSENDABLE, f"The request cannot be sent: {error}")
        try:
            reply = await self._exchange(head, request.body)
            other_path = self._origin.other_path(request.endpoint, reply)
            if other_path is not None:
                head = self._origin.post(other_path, len(request.body), request.trace)
                reply = await self._exchange(head, request.body)
            return outcome_of(reply)
        except Exception as error:  # noqa: BLE001 - a request without an outcome would never end
            return self._error_outcome(error, self._timeout)

    async def _send_probe(
        self, head: bytes, body: bytes = b"", *, any_body: bool = False
    ) -> Answered | Unanswered:
        """Return the outcome of one request outside the slots, within the probe timeout."""
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT):
                reply = await self._exchange(head, body)
        except Exception as error:  # noqa: BLE001 - as for every request
            return self._error_outcome(error, _PROBE_TIMEOUT)
        # vLLM's health response has no body, and those of others are not JSON.
        if any_body and 200 <= reply.status < 300:
            return Answered(reply.status, b"")
        return outcome_of(reply)

    async def _metrics(self) -> bytes:
        """Return the engine's metrics; empty without an answer in time."""
        try:
            async with asyncio.timeout(_METRICS_TIMEOUT):
                reply = await self._exchange(self._origin.get("/metrics"), b"")
        except Exception:  # noqa: BLE001 - as for every request; probes find a bad engine
            return b""
        return reply.body if reply.status == 200 else b""

    def _error_outcome(self, error: Exception, seconds: float) -> Unanswered:
        """Return the outcome of a failed exchange; all cases but the last are expected."""
        match error:
            case TimeoutError():
                text = f"The engine did not respond within {seconds:g} s."
                return Unanswered(NoAnswer.TIMEOUT, text)
            case BrokenReplyError():
                return Unanswered(error.code, f"Invalid response from the engine: {error}.")
            case socket.gaierror():
                text = f"The engine's host {self._origin.host} cannot be resolved: {error}"
                return Unanswered(NoAnswer.DNS, text)
            case ssl.SSLError() | ssl.CertificateError():
                text = f"TLS connection to the engine failed: {error}"
                return Unanswered(NoAnswer.TLS, text)
            case OSError():
                return Unanswered(NoAnswer.UNREACHED, f"The engine could not be reached: {error}")
            case _:
                return Unanswered(NoAnswer.FAULT, f"The request failed: {error!r}")

    async def _exchange(self, head: bytes, body: bytes) -> Reply:
        async with asyncio.timeout(self._timeout) as deadline:
            connection = self._idle_connection() or await self._connect()
            reply = await connection.exchange(head, body, deadline)
        if connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def _idle_connection(self) -> Connection | None:
        """Return the most recently used connection that is still good."""
        oldest = asyncio.get_running_loop().time() - _KEEP_ALIVE
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                return await Connection.open(
                    self._origin, self._tls, self._max_response_bytes, self._intake
                )
        except TimeoutError as error:
            raise ConnectionError(f"no connection within {_CONNECT_TIMEOUT:g} s") from error

"""An engine without a model: seeded latency, answers, failures and spot interruptions."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from lowtide.engines.breaker import Probed
from lowtide.engines.flow import Arrivals
from lowtide.engines.model import EngineRequest, probed_by
from lowtide.engines.outcomes import Answered, Interrupted
from lowtide.engines.simulation.answers import answer, failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lowtide.engines.load import EngineLoad
    from lowtide.engines.model import Ping
    from lowtide.engines.outcomes import Outcome
    from lowtide.engines.simulation.faults import Faults
    from lowtide.engines.telemetry import EngineTelemetry


INTERRUPTION: Final = "Simulated spot interruption"

_DRAWS = Struct("<6Q")
_FIXED_SHARE = 0.25
"""Part of the mean latency that is constant; the rest is exponentially distributed."""


@dataclass(slots=True)
class _Call:
    arrivals: Arrivals
    timers: dict[int, asyncio.TimerHandle] = field(default_factory=dict)
    is_over: bool = False


class SimulatedEngine:
    """A simulated OpenAI-compatible server on capacity that may be taken away.

    An outcome depends only on the seed and the request (endpoint, body, attempt, spot,
    interruptions), never on the order or time of calls. `latency` is the mean in seconds, 0 answers
    immediately; `tokens` is the mean per response; the rates are shares of attempts, and only spot
    requests are interrupted. `faults` depend on the clock and apply on top.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        latency: float = 0.0,
        tokens: int = 64,
        failure_rate: float = 0.0,
        interruption_rate: float = 0.0,
        concurrency: int = 32,
        faults: Faults | None = None,
    ) -> None:
        self._seed = blake2b(str(seed).encode(), digest_size=32).digest()
        self._latency = latency
        self._tokens = tokens
        self._failure_rate = failure_rate
        self._interruption_rate = interruption_rate
        self._concurrency = self._limit = self._free = concurrency
        self._waiting: deque[tuple[_Call, EngineRequest]] = deque()
        self._calls: list[_Call] = []
        self._faults = faults

    async def run(
        self, requests: Sequence[EngineRequest]
    ) -> AsyncIterator[Sequence[tuple[int, Outcome]]]:
        """Yield outcomes as their latency elapses; without latency and faults, all in one group."""
        if not requests:
            return
        if not self._latency and not self._faults:
            yield [(request.key, self._simulate(request)[0]) for request in requests]
            return
        call = _Call(Arrivals(len(requests)))
        self._calls.append(call)
        self._waiting.extend((call, request) for request in requests)
        try:
            self._start_waiting()
            async for group in call.arrivals.groups():
                yield group
        finally:
            self._calls.remove(call)
            self._end(call)

    async def probe(self, ping: Ping | None = None) -> Probed:
        """Return the health that the faults imply: well, without any."""
        if not self._faults:
            return Probed(well=True, answers=True)
        refusal = self._faults.refusal()
        if refusal is not None:
            return Probed(well=False, reason=refusal.message)
        if ping is None or ping.body() is None:
            return Probed(well=True)
        outcome, _ = self._faults.strike(None, Answered(200, b"{}"), self._latency)
        return probed_by(outcome, f"POST {ping.endpoint}")

    def limit(self, in_flight: int) -> None:
        """Set the max number of requests in flight."""
        limit = min(in_flight, self._concurrency)
        self._free += limit - self._limit
        self._limit = limit
        self._start_waiting()

    async def load(self) -> EngineLoad | None:
        """Report nothing."""
        return None

    async def telemetry(self) -> EngineTelemetry | None:
        """Report nothing."""
        return None

    async def models(self) -> Sequence[str]:
        """Return no names: any model is served."""
        return ()

    async def close(self) -> None:
        """Abandon requests in flight; running calls end without the missing outcomes."""
        for call in self._calls:
            self._end(call)
            call.arrivals.abandon()

    def _start_waiting(self) -> None:
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        while self._free > 0 and self._waiting:
            call, request = self._waiting.popleft()
            if call.is_over:
                continue
            outcome, delay = self._simulate(request)
            if self._faults:
                outcome, delay = self._faults.strike(request, outcome, delay)
            self._free -= 1
            call.timers[request.key] = loop.call_later(
                delay, self._finish, call, request.key, outcome
            )

    def _finish(self, call: _Call, key: int, outcome: Outcome) -> None:
        del call.timers[key]
        call.arrivals.add(key, outcome)
        self._free += 1
        self._start_waiting()

    def _end(self, call: _Call) -> None:
        call.is_over = True
        for timer in call.timers.values():
            timer.cancel()
        self._free += len(call.timers)
        call.timers.clear()
        self._start_waiting()

    def _simulate(self, request: EngineRequest) -> tuple[Outcome, float]:
        """Return the outcome and the seconds until it arrives."""
        digest = self._digest(request)
        interrupted, failed, delay, length, age, part = (
            (draw >> 11) / 2**53 for draw in _DRAWS.unpack(digest)
        )
        seconds = self._latency * (_FIXED_SHARE + (1 - _FIXED_SHARE) * -math.log1p(-delay))
        if request.spot and interrupted < self._interruption_rate:
            return Interrupted(INTERRUPTION), seconds * part
        request_id = f"req_{digest.hex()[:32]}"
        if failed < self._failure_rate:
            return Answered(500, failure("The simulated server failed."), request_id), seconds
        if b'"seed"' in request.body:
            # A request with a seed gets the same answer in every attempt.
            digest = self._digest(replace(request, attempt=1, spot=False, interruptions=0))
            *_, length, age, _ = ((draw >> 11) / 2**53 for draw in _DRAWS.unpack(digest))
        tokens = 1 + int(-math.log1p(-length) * (self._tokens - 1))
        status, body, usage = answer(request.endpoint, request.body, digest, tokens, age)
        return Answered(status, body, request_id, usage), seconds

    def _digest(self, request: EngineRequest) -> bytes:
        head = f"{request.endpoint} {request.attempt} {request.spot:d} {request.interruptions}\n"
        state = blake2b(head.encode(), key=self._seed, digest_size=_DRAWS.size)
        state.update(request.body)
        return state.digest()

"""A worker's watch over its engine: fault attribution, the breaker, and the throttle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import Unavailable
from lowtide.engines.attribution import (
    EngineState,
    Fault,
    attribute,
    is_ambiguous,
    is_from_proxy,
    kind_of,
    needs_probe,
)
from lowtide.engines.breaker import Breaker, BreakerState, Probed
from lowtide.engines.model import Ping
from lowtide.engines.outcomes import Answered
from lowtide.worker.engine_state import ModelGaps, Suspects, Throttle
from lowtide.worker.zero_retention import public_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from lowtide.core.ids import BatchId
    from lowtide.engines.model import Engine
    from lowtide.engines.outcomes import Outcome
    from lowtide.queue.claims import Claim
    from lowtide.worker.metrics import WorkerMetrics


_log = logging.getLogger(__name__)
RECENT: Final = 2.0
"""Seconds for which a success proves that the engine answers others."""
_HEALTH_ONLY_EVERY: Final = 4
"""One in this many probes of a bad engine checks its health only.

The cause may be one model of several behind a gateway; a request of another model then shows it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The fault of an outcome; `at_once`: the request need not wait for its next attempt."""

    fault: Fault | None
    at_once: bool = True


SUCCESS: Final = Verdict(None)


class EngineWatch:
    """Attributes outcomes and keeps the breaker; `run` it concurrently with the worker.

    It calls `on_change` when more or fewer requests may be claimed, `on_open` when everything must
    be released, `on_pressure` when the engine refused a round of requests, and `on_state` when the
    breaker's state or reason changes. `patience` bounds the
    engine's start, `cap` bounds pauses; times are in seconds.
    """

    def __init__(
        self,
        engine: Engine,
        meter: WorkerMetrics,
        *,
        concurrency: int,
        cap: float,
        patience: float,
        rng: Random,
        timer: Callable[[], float] = monotonic,
    ) -> None:
        self._engine = engine
        self._meter = meter
        self._cap = cap
        self._rng = rng
        self._timer = timer
        self._breaker = Breaker(since=timer(), probe_at=timer(), patience=patience)
        self._throttle = Throttle.of(concurrency)
        self._limit = concurrency
        meter.allowed(concurrency)
        self._last_success = float("-inf")
        self._failed: set[tuple[BatchId, int]] = set()
        self._ping: Ping | None = None
        self._gaps = ModelGaps()
        self._suspects = Suspects()
        self._probe: asyncio.Task[Probed] | None = None
        self._changed = asyncio.Event()
        self.on_change: Callable[[], None] = _do_nothing
        self.on_open: Callable[[], None] = _do_nothing
        self.on_pressure: Callable[[], None] = _do_nothing
        self.on_state: Callable[[BreakerState, str], None] = _do_nothing

    @property
    def is_shut_off(self) -> bool:
        """True while no request may be claimed or sent, and all must be released."""
        return self._breaker.is_shut_off

    @property
    def is_probing(self) -> bool:
        """True while the next request is the canary."""
        return self._breaker.state is BreakerState.PROBING

    @property
    def is_paused(self) -> bool:
        """True while no request may be sent because the engine refused some."""
        return not self._throttle.in_flight(self._timer())

    @property
    def reason(self) -> str:
        """The reason for a breaker that is not closed."""
        return self._breaker.reason

    @property
    def lacking(self) -> frozenset[str]:
        """The models that the engine lacks or cannot run; "" stands for requests without one."""
        return self._gaps.missing

    def check(self) -> None:
        """Raise Unavailable while the engine is unavailable; thread-safe."""
        breaker = self._breaker
        if breaker.state is not BreakerState.CLOSED:
            raise Unavailable(f"engine_unavailable: {breaker.reason}")

    @property
    def concurrency(self) -> int:
        """The max number of requests in flight while the engine is well."""
        return self._throttle.most

    def allow(self, concurrency: int) -> None:
        """Change the max number of requests in flight."""
        self._meter.allowed(concurrency)
        self._throttle = self._throttle.allowing(concurrency)
        self._apply_limit()

    def capacity(self, prefetch: int) -> int:
        """Return the max number of claimed requests; with `prefetch` ones while the engine is well."""
        if self.is_shut_off:
            return 0
        if self.is_probing:
            return 1
        most = self._throttle.most
        in_flight = self._throttle.in_flight(self._timer())
        return -(-(most + prefetch) * in_flight // most)

    def succeeded(self, requests: int, models: Iterable[str | None] = ()) -> None:
        """Record successes of requests of `models`."""
        now = self._last_success = self._timer()
        if self._gaps and self._gaps.found(models, now):
            self.on_change()
        if self._failed:
            self._failed.clear()
        breaker = self._breaker.succeeded(now)
        if breaker is not self._breaker:
            self._set_breaker(breaker)
        throttle = self._throttle.succeeded(requests)
        if throttle is not self._throttle:
            self._throttle = throttle
            self._apply_limit()

    async def judge(self, claim: Claim, outcome: Outcome) -> Verdict:
        """Return the verdict on an outcome without success; may probe the engine."""
        identity, ping = (claim.batch, claim.line), Ping(claim.endpoint, claim.model)
        state = self._state(identity)
        if needs_probe(outcome, state) and not self.is_shut_off:
            probed = await self._probe_engine(ping)
            state = self._state(identity)
            answers = probed.answers or state.answers_others
            state = replace(state, probed_well=probed.well, answers_others=answers)
        fault = attribute(outcome, state)
        if fault is None:
            return SUCCESS
        if fault is Fault.ENGINE and is_from_proxy(outcome):
            now = self._timer()
            if self._suspects.blames(identity, now, self._last_success):
                fault = Fault.REQUEST
        if is_ambiguous(outcome) and len(self._failed) < 2:
            self._failed.add(identity)
        lacks_named_model = self._record_fault(ping, outcome, fault)
        if not (lacks_named_model and self._answers_others):
            self._set_breaker(
                self._breaker.failed(
                    fault,
                    public_reason(claim, outcome),
                    self._timer(),
                    ambiguous=is_ambiguous(outcome),
                )
            )
        # The next claims leave out a model that is missing, but not a part of a mixed batch.
        is_left_out = lacks_named_model and not claim.mixed
        return Verdict(fault, at_once=is_left_out or not self._answers_others)

    def found_nothing(self) -> bool:
        """Record an empty claim; return whether to claim again immediately, for the canary.

        If all waiting requests may be of models that the engine lacks, the breaker's state and
        reason make that visible.
        """
        now = self._timer()
        if self.is_probing:
            self._gaps.clear()
            self._set_breaker(self._breaker.found_nothing(now))
        elif lacking := self.lacking:
            names = ", ".join(sorted(name or "requests without a model" for name in lacking))
            reason = f"The engine does not serve {names}, or fails every such request"
            self._set_breaker(self._breaker.doubted(reason, now))
            return self.is_probing
        return False

    async def run(self) -> None:
        """Probe a bad engine and missing models, and end pauses, until cancelled."""
        try:
            while True:
                self._changed.clear()
                self._apply_limit()
                now = self._timer()
                if self.is_shut_off and now >= self._breaker.probe_at:
                    await self._probe_bad_engine(now)
                elif not self.is_shut_off and (ping := self._gaps.due(now)) is not None:
                    await self._probe_model(ping)
                else:
                    await self._wait(now)
        finally:
            if self._probe is not None:
                self._probe.cancel()

    @property
    def _answers_others(self) -> bool:
        return self._timer() - self._last_success < RECENT

    def _state(self, identity: tuple[BatchId, int]) -> EngineState:
        return EngineState(
            answers_others=self._answers_others and not self._breaker.is_suspicious,
            fails_others=bool(self._failed - {identity}),
        )

    def _record_fault(self, ping: Ping, outcome: Outcome, fault: Fault) -> bool:
        """Record a fault; return whether it is the absence of a model that the request names."""
        now = self._timer()
        if fault is Fault.BACK_PRESSURE:
            wait = outcome.retry_after if isinstance(outcome, Answered) else None
            rounds = self._throttle.rounds
            self._throttle = self._throttle.pressed(now, self._rng, cap=self._cap, wait=wait)
            if self._throttle.rounds > rounds:
                self.on_pressure()
            self._apply_limit()
        if fault is not Fault.ENGINE:
            return False
        self._meter.engine_failed(kind_of(outcome))
        self._ping = ping
        if ping.model is None or not (isinstance(outcome, Answered) and outcome.lacks_model):
            return False
        if self._gaps.miss(ping, now):
            self._changed.set()
        return True

    async def _probe_bad_engine(self, now: float) -> None:
        """Probe a bad engine, now and then without the request that failed last."""
        ping = self._ping
        if ping is None or self._breaker.failed_probes % _HEALTH_ONLY_EVERY:
            await self._probe_engine(ping)
            return
        # The canary is of this model only if no other request waits.
        self._gaps.miss(ping, now)
        probed = await self._probe_engine(None)
        if probed.answers or not probed.well:
            self._gaps.forget(ping)

    async def _probe_engine(self, ping: Ping | None) -> Probed:
        """Probe the engine; concurrent callers share one probe."""
        if self._probe is None:
            self._probe = asyncio.create_task(self._engine.probe(ping))
            self._probe.add_done_callback(self._on_probed)
        return await asyncio.shield(self._probe)

    def _on_probed(self, task: asyncio.Task[Probed]) -> None:
        self._probe = None
        if task.cancelled() or task.exception() is not None:
            return
        probed, now = task.result(), self._timer()
        if probed.answers:
            self._last_success = now
            self._failed.clear()
        self._set_breaker(self._breaker.probed(probed, now))

    async def _probe_model(self, ping: Ping) -> None:
        """Probe whether the engine runs a missing model by now."""
        probed = await self._engine.probe(ping)
        now = self._timer()
        if not probed.well or probed.lacks_model:
            self._gaps.still_missing(ping, now)
            return
        self._gaps.found([ping.model], now)
        self._set_breaker(self._breaker.probed(probed, now))
        self.on_change()

    def _set_breaker(self, breaker: Breaker) -> None:
        previous, self._breaker = self._breaker, breaker
        if (previous.state, previous.reason) == (breaker.state, breaker.reason):
            return
        if previous.state is not breaker.state:
            _log.log(
                logging.WARNING if breaker.is_shut_off else logging.INFO,
                "engine.breaker",
                extra={"state": breaker.state.value, "reason": breaker.reason},
            )
        if breaker.is_shut_off and not previous.is_shut_off:
            self._failed.clear()
            self.on_open()
        self._meter.engine_is(breaker.state)
        self.on_state(breaker.state, breaker.reason)
        self.on_change()
        self._changed.set()

    def _apply_limit(self) -> None:
        limit = self._throttle.in_flight(self._timer())
        if limit != self._limit:
            self._limit = limit
            self._engine.limit(limit)
            self.on_change()
            self._changed.set()

    async def _wait(self, now: float) -> None:
        times = self._gaps.times
        if self.is_shut_off:
            times = [self._breaker.probe_at]
        if self._throttle.paused_until > now:
            times.append(self._throttle.paused_until)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(times) - now) if times else None):
                await self._changed.wait()


def _do_nothing(*_: object) -> None:
    """Do nothing."""

"""A worker's telemetry: its engine's metrics, and its own tokens per second."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final

from lowtide.queue.rates import WorkerTelemetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.engines.model import Engine
    from lowtide.engines.telemetry import EngineTelemetry
    from lowtide.worker.engine_watch import EngineWatch
    from lowtide.worker.lease import LeaseKeeper
    from lowtide.worker.metrics import WorkerMetrics


INTERVAL: Final = 5.0
"""Seconds between two readings."""
_STALE: Final = 15.0
"""Seconds after which a report that is not renewed is dropped."""
_ASK_AGAIN: Final = 30.0
"""Seconds until an engine without a report is asked again."""
_WINDOW: Final = 60.0
"""Seconds that tokens per second are the mean of: answers arrive in bursts."""


class TokenRates:
    """Input and output tokens per second in the last minute, or since the start."""

    def __init__(self, now: float) -> None:
        self._totals = deque([(now, 0, 0)])

    def add(self, now: float, prompt: int, output: int) -> tuple[float, float]:
        """Record totals, and return the rates."""
        self._totals.append((now, prompt, output))
        while len(self._totals) > 2 and self._totals[1][0] <= now - _WINDOW:
            self._totals.popleft()
        began, prompt_before, output_before = self._totals[0]
        seconds = now - began
        if seconds <= 0:
            return 0.0, 0.0
        return (prompt - prompt_before) / seconds, (output - output_before) / seconds


class TelemetryReader:
    """Reads telemetry, exports it, and hands it to the lease's keeper; `run` it beside the worker."""

    def __init__(
        self,
        engine: Engine,
        watch: EngineWatch,
        meter: WorkerMetrics,
        keeper: LeaseKeeper,
        *,
        interval: float = INTERVAL,
        timer: Callable[[], float] = monotonic,
    ) -> None:
        self._engine = engine
        self._watch = watch
        self._meter = meter
        self._keeper = keeper
        self._interval = interval
        self._timer = timer
        self._rates = TokenRates(timer())
        self._seen: EngineTelemetry | None = None
        self._seen_at = self._ask_at = timer()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            await self.read()

    async def read(self) -> None:
        """Read once."""
        now = self._timer()
        if now >= self._ask_at:
            self._saw(await self._engine.telemetry(), now)
        prompt_rate, output_rate = self._rates.add(now, *self._meter.tokens)
        self._keeper.telemetry = WorkerTelemetry(
            prompt_rate, output_rate, self._watch.concurrency, self._seen
        )

    def _saw(self, telemetry: EngineTelemetry | None, now: float) -> None:
        if telemetry is not None:
            self._seen_at = now
        elif self._seen is not None and now - self._seen_at < _STALE:
            return
        else:
            self._ask_at = now + _ASK_AGAIN
        self._seen = telemetry
        self._meter.engine_reports(telemetry)

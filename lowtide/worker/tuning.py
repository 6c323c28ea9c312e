"""Keeps a worker's requests in flight at what its engine can use."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from lowtide.core.errors import LowtideError
from lowtide.engines.concurrency import TICK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowtide.engines.concurrency import Concurrency
    from lowtide.engines.load import EngineLoad, Interval, LoadMeter
    from lowtide.engines.model import Engine
    from lowtide.queue.rates import ConcurrencyStore
    from lowtide.worker.engine_watch import EngineWatch
    from lowtide.worker.lease import Utilization


_log = logging.getLogger(__name__)
_ASK_AGAIN: Final = 30.0
"""Seconds until an engine that reports no load is asked again."""
_MISSING: Final = 5.0
"""Seconds without a report after which a reporting engine counts as one that does not report."""
_RECORD_AFTER: Final = 5.0
"""Seconds between two records of what a search found."""
_DIFFERENT: Final = 0.2
"""Change of what was found that is worth a record: a search goes on trying an eighth more or less."""


class Strategy(Protocol):
    """Sets a limit on requests in flight, tick by tick; times in seconds.

    `is_settled` while the limit tells what the engine can do. `needs_load` if an engine that does
    not report its load cannot be used well.
    """

    limit: int
    is_settled: bool
    needs_load: bool

    def observe(self, now: float, interval: Interval, load: EngineLoad | None) -> None:
        """Adapt the limit to the last tick."""
        ...

    def refused(self, now: float) -> None:
        """Lower the limit: the engine refused requests."""
        ...

    def restart(self) -> None:
        """Begin again: the engine may be another one."""
        ...


class ConcurrencyTuner:
    """Observes the engine and sets the watch's limit; `run` it concurrently with the worker.

    Utilization, which measures the worker's rate, counts only once the limit has settled.
    """

    def __init__(
        self,
        engine: Engine,
        meter: LoadMeter,
        watch: EngineWatch,
        utilization: Utilization,
        concurrency: Strategy,
        *,
        tick: float = TICK,
        ask_again: float = _ASK_AGAIN,
        timer: Callable[[], float] = monotonic,
    ) -> None:
        self._engine = engine
        self._meter = meter
        self._watch = watch
        self._utilization = utilization
        self._concurrency = concurrency
        self._tick = tick
        self._ask_again = ask_again
        self._timer = timer
        self._reported_at: float | None = None
        self._ask_at = timer()
        self._was_settled = False
        self._is_warned = False
        watch.on_pressure = self._refused
        self._apply()

    async def run(self) -> None:
        """Observe the engine once per tick, until cancelled."""
        while True:
            await asyncio.sleep(self._tick)
            if self._watch.is_shut_off:
                self.restart()
                continue
            if self._watch.is_paused:
                self._meter.take()
                continue
            load = await self._load()
            if load is None and self.engine_reports:
                continue
            self._concurrency.observe(self._timer(), self._meter.take(), load)
            self._apply()

    @property
    def engine_reports(self) -> bool:
        """Whether the engine reported its load a short while ago."""
        return self._reported_at is not None and self._timer() - self._reported_at < _MISSING

    async def _load(self) -> EngineLoad | None:
        now = self._timer()
        if now < self._ask_at:
            return None
        load = await self._engine.load()
        if load is not None:
            self._reported_at = now
        elif not self.engine_reports:
            self._ask_at = now + self._ask_again
            self._warn()
        return load

    def _warn(self) -> None:
        """Log once that the strategy lacks what it decides by."""
        if self._concurrency.needs_load and not self._is_warned:
            self._is_warned = True
            _log.warning(
                "worker.engine_load_unknown",
                extra={"limit": 1, "hint": "GET /metrics of the engine has no requests waiting"},
            )

    def restart(self) -> None:
        """Search again from the start: the engine may be another one."""
        self._meter.take()
        self._ask_at = self._timer()
        self._concurrency.restart()
        self._apply()

    def _refused(self) -> None:
        self._concurrency.refused(self._timer())
        self._apply()

    def _apply(self) -> None:
        limit, is_settled = self._concurrency.limit, self._concurrency.is_settled
        self._utilization.full = limit if is_settled else sys.maxsize
        if limit != self._watch.concurrency:
            _log.debug("worker.concurrency", extra={"limit": limit})
            self._watch.allow(limit)
        if is_settled and not self._was_settled:
            _log.info("worker.concurrency_settled", extra={"limit": limit})
        self._was_settled = is_settled


class ConcurrencyMemory:
    """Starts a search where the last one of the fleet's pool ended; `run` it beside the tuner.

    What the search finds is recorded when it changes, for an engine that reports its load. Without
    reports a search may settle far above what is needed, and a start there would only go up.
    """

    def __init__(
        self,
        store: ConcurrencyStore,
        concurrency: Concurrency,
        tuner: ConcurrencyTuner,
        *,
        interval: float = _RECORD_AFTER,
    ) -> None:
        self._store = store
        self._concurrency = concurrency
        self._tuner = tuner
        self._interval = interval
        self._known = 0

    async def run(self) -> None:
        """Read what is known, and record what is found, until cancelled."""
        with _failure_logged("worker.concurrency_unknown"):
            known = await asyncio.to_thread(self._store.read)
            if known is not None:
                self._concurrency.start = self._known = known
                self._tuner.restart()
        while True:
            await asyncio.sleep(self._interval)
            found = self._concurrency.limit
            is_known = self._concurrency.is_settled and self._tuner.engine_reports
            if is_known and abs(found - self._known) > _DIFFERENT * self._known:
                with _failure_logged("worker.concurrency_not_recorded"):
                    await asyncio.to_thread(self._store.record, found)
                    self._concurrency.start = self._known = found


@contextmanager
def _failure_logged(event: str) -> Iterator[None]:
    try:
        yield
    except LowtideError as error:
        _log.warning(event, extra={"reason": error.for_log})

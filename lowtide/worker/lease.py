"""A worker's lease, and its utilization."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from lowtide.core.errors import LowtideError
from lowtide.engines.breaker import BreakerState
from lowtide.planning.demand import RateSample

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.core.ids import LeaseId
    from lowtide.core.pools import Pool
    from lowtide.queue.rates import RateStore, WorkerTelemetry
    from lowtide.queue.store import QueueStore


class Utilization:
    """Measures utilization: the requests that end while at least `full` are claimed, and that time.

    With fewer, a worker could have done more, so its work says nothing about its rate. Nor does the
    time until the first requests end: counting starts once `full` of them have ended.

    While requests are claimed, `share` grows by the elapsed seconds divided by their number. Its
    growth between the claim and the end of a request is that request's share of the worker's time;
    all shares add up to that time.
    """

    def __init__(self, full: int, timer: Callable[[], float] = monotonic) -> None:
        self.full = full
        self._timer = timer
        self.restart()

    def restart(self) -> None:
        """Reset all counts for a new lease."""
        self._claimed = self._turnover = self._lines = 0
        self._seconds = 0.0
        self.share = 0.0
        self._since = self._timer()

    def took(self, lines: int) -> float:
        """Count newly claimed requests; return the share that they start from."""
        self._advance()
        if self._claimed == 0:
            self._turnover = 0
        self._claimed += lines
        return self.share

    def left(self, lines: int, *, ran: int) -> float:
        """Count requests that left, `ran` of which ran to an end, in success or failure.

        Return the share that they end at. Released requests and engine faults say nothing about the
        worker's rate.
        """
        self._advance()
        if self._is_counting:
            self._lines += ran
        self._turnover += ran
        self._claimed = max(0, self._claimed - lines)
        return self.share

    def total(self) -> RateSample:
        """Return the counts under this lease."""
        self._advance()
        return RateSample(self._lines, self._seconds)

    @property
    def _is_counting(self) -> bool:
        return self._claimed >= self.full and self._turnover >= self.full

    def _advance(self) -> None:
        now = self._timer()
        if self._is_counting:
            self._seconds += now - self._since
        if self._claimed:
            self.share += (now - self._since) / self._claimed
        self._since = now


_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_RETRY_SECONDS = 0.5


class LeaseKeeper:
    """Keeps the lease under which a worker claims and settles; `duration` is in seconds.

    Each renewal reports the worker's utilization and its last `telemetry`.
    """

    def __init__(
        self,
        queue: QueueStore,
        rates: RateStore,
        utilization: Utilization,
        *,
        pool: Pool,
        worker: str,
        duration: float,
    ) -> None:
        self._queue = queue
        self._rates = rates
        self.utilization = utilization
        self._pool = pool
        self._worker = worker
        self._duration = duration
        # Its own thread: a slow object store may keep all of the loop's busy, and a late renewal
        # costs every claimed request.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lease")
        self.lease: LeaseId | None = None
        self.telemetry: WorkerTelemetry | None = None
        self._reports: set[asyncio.Task[None]] = set()
        self._engine = self._reported = (BreakerState.CLOSED, "")

    def engine_is(self, state: BreakerState, reason: str) -> None:
        """Report the engine's state, now and with each renewal until it is written."""
        self._engine = (state, reason)
        task = asyncio.get_running_loop().create_task(self._report_engine())
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report_engine(self) -> None:
        engine = self._engine
        if self.lease is None or engine == self._reported:
            return
        try:
            await self._call(self._queue.report_engine, self.lease, *engine)
            self._reported = engine
        except LowtideError as error:
            _log.warning("engine.unreported", extra={"reason": error.message})

    async def open(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Open a lease, retrying until the database is available or `should_stop`."""
        while self.lease is None and not should_stop():
            try:
                self.lease = await self._call(self._queue.open_lease, self._pool, self._worker)
                self._reported = (BreakerState.CLOSED, "")
            except LowtideError as error:
                _log.warning("lease.unopened", extra={"reason": error.for_log})
                await asyncio.sleep(_RETRY_SECONDS)

    async def keep(self, on_lost: Callable[[], None]) -> None:
        """Renew the lease until cancelled; call `on_lost` when it is lost, and open another."""
        while True:
            await asyncio.sleep(self._duration / 3)
            if self.lease is None:
                continue
            try:
                if await self._call(self._queue.renew, self.lease):
                    total = self.utilization.total()
                    await self._call(self._rates.report, self.lease, total, self.telemetry)
                    await self._report_engine()
                    continue
            except LowtideError as error:
                _log.warning("lease.unrenewed", extra={"reason": error.for_log})
                continue
            _log.warning("lease.lost", extra={"lease": self.lease})
            self.lease = None
            on_lost()
            self.utilization.restart()
            await self.open()
            await self._report_engine()

    async def close(self) -> None:
        """Close the lease; the database releases the requests still claimed."""
        if self.lease is None:
            return
        try:
            await self._call(self._queue.close_lease, self.lease)
        except LowtideError as error:
            _log.warning("lease.unclosed", extra={"reason": error.for_log})

    async def _call(self, function: Callable[..., _Answer], *arguments: object) -> _Answer:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

"""A worker's lease: opened, renewed, and opened anew when it was lost."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from lowtide.domain.breaker import BreakerState
from lowtide.domain.errors import LowtideError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.domain.ids import LeaseId
    from lowtide.domain.pools import Pool
    from lowtide.ports import Queue, RateBook
    from lowtide.services.pace import Pace

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_RETRY_SECONDS = 0.5


class LeaseKeeper:
    """Holds the lease under which a worker claims and settles. `duration` is in seconds.

    With each renewal it reports the worker's pace.
    """

    def __init__(
        self,
        queue: Queue,
        rates: RateBook,
        pace: Pace,
        *,
        pool: Pool,
        worker: str,
        duration: float,
    ) -> None:
        self._queue = queue
        self._rates = rates
        self.pace = pace
        self._pool = pool
        self._worker = worker
        self._duration = duration
        # Its own thread: a slow object store may keep all of the loop's busy, and a renewal that
        # comes too late costs every line in hand.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lease")
        self.lease: LeaseId | None = None
        self._reports: set[asyncio.Task[None]] = set()
        self._engine = self._reported = (BreakerState.CLOSED, "")

    def engine_is(self, state: BreakerState, reason: str) -> None:
        """Report how the worker's engine is, at once and with each renewal until it is written."""
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

    async def open(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Open a lease, waiting for the database until `given_up`."""
        while self.lease is None and not given_up():
            try:
                self.lease = await self._call(self._queue.open_lease, self._pool, self._worker)
                self._reported = (BreakerState.CLOSED, "")
            except LowtideError as error:
                _log.warning("lease.unopened", extra={"reason": error.for_log})
                await asyncio.sleep(_RETRY_SECONDS)

    async def keep(self, on_lost: Callable[[], None]) -> None:
        """Renew the lease until cancelled; call `on_lost` once it was given away."""
        while True:
            await asyncio.sleep(self._duration / 3)
            if self.lease is None:
                continue
            try:
                if await self._call(self._queue.renew, self.lease):
                    await self._call(self._rates.report, self.lease, self.pace.total())
                    await self._report_engine()
                    continue
            except LowtideError as error:
                _log.warning("lease.unrenewed", extra={"reason": error.for_log})
                continue
            _log.warning("lease.lost", extra={"lease": self.lease})
            self.lease = None
            on_lost()
            self.pace.restart()
            await self.open()
            await self._report_engine()

    async def close(self) -> None:
        """Leave; the database gives whatever is still held back to the queue."""
        if self.lease is None:
            return
        try:
            await self._call(self._queue.close_lease, self.lease)
        except LowtideError as error:
            _log.warning("lease.unclosed", extra={"reason": error.for_log})

    async def _call(self, function: Callable[..., _Answer], *arguments: object) -> _Answer:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

"""Settlement of outcomes in micro-batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import LowtideError
from lowtide.engines.outcomes import Usage
from lowtide.queue.claims import Finished, Returned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.core.ids import LeaseId
    from lowtide.engines.flow import ByteBudget
    from lowtide.events.publisher import Publisher
    from lowtide.queue.store import QueueStore
    from lowtide.worker.lease import LeaseKeeper
    from lowtide.worker.metrics import WorkerMetrics


_log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5
STATEMENT_BYTES: Final = 8 * 2**20
"""Max bytes of results in one statement, which takes several times as much while it is sent."""


@dataclass(frozen=True, slots=True)
class FlushRules:
    """Rules for a write: once `lines` have ended, or `interval` seconds after the first of them."""

    lines: int
    interval: float

    @property
    def backlog(self) -> int:
        """The number of unwritten requests from which on no more should be claimed."""
        return 10 * self.lines


class ResultWriter:
    """Collects ended requests and settles them together, until the database accepts them.

    After a commit with an unknown outcome the same requests are settled again: those that it did
    settle are no longer under the lease and are skipped.
    """

    def __init__(
        self,
        keeper: LeaseKeeper,
        queue: QueueStore,
        publisher: Publisher,
        meter: WorkerMetrics,
        rules: FlushRules,
        budget: ByteBudget,
    ) -> None:
        self._keeper = keeper
        self._queue = queue
        self._publisher = publisher
        self._meter = meter
        self._rules = rules
        self._budget = budget
        self._waiting: list[Finished | Returned] = []
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._writing = asyncio.Lock()
        self._unwritten = 0
        self._waiting_bytes = 0

    @property
    def is_congested(self) -> bool:
        """True while writing lags so far that no more requests should be claimed."""
        return len(self._waiting) + self._unwritten >= self._rules.backlog

    def add(self, lines: Sequence[Finished | Returned]) -> None:
        """Queue requests to be settled or released."""
        if not lines:
            return
        self._waiting.extend(lines)
        size = sum(map(size_of, lines))
        self._waiting_bytes += size
        self._budget.take_result(size)
        self._some.set()
        if len(self._waiting) >= self._rules.lines or self._waiting_bytes >= STATEMENT_BYTES:
            self._enough.set()

    def discard(self) -> None:
        """Drop everything: the lease is lost, and its requests with it."""
        self._waiting.clear()
        self._budget.give_result(self._waiting_bytes)
        self._waiting_bytes = 0

    async def run(self, on_written: Callable[[], None]) -> None:
        """Write until cancelled; `on_written` is called after each write."""
        while True:
            await self._some.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rules.interval):
                    await self._enough.wait()
            await self.flush()
            on_written()

    async def flush(self) -> None:
        """Write everything that waits now; keep it on failure."""
        async with self._writing:
            self._some.clear()
            self._enough.clear()
            lines, self._waiting = self._waiting, []
            size, self._waiting_bytes = self._waiting_bytes, 0
            lease = self._keeper.lease
            self._unwritten = len(lines)
            try:
                while lines and lease is not None:
                    some = in_one_statement(lines)
                    await asyncio.shield(self._settle(lease, some))
                    del lines[: len(some)]
                    written = sum(map(size_of, some))
                    del some
                    size -= written
                    self._budget.give_result(written)
            except LowtideError as error:
                _log.warning("settle.failed", extra={"lines": len(lines), "reason": error.for_log})
                await asyncio.sleep(_RETRY_SECONDS)
                self.add(lines)
            finally:
                self._unwritten = 0
                self._budget.give_result(size)

    async def drain(self, seconds: float) -> None:
        """Write everything, including a write in progress, for at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while self._waiting or self._writing.locked():
                    await self.flush()
        except TimeoutError:
            _log.warning("settle.abandoned", extra={"lines": len(self._waiting)})

    async def _settle(self, lease: LeaseId, lines: Sequence[Finished | Returned]) -> None:
        finished = [line for line in lines if isinstance(line, Finished)]
        returned = [line for line in lines if isinstance(line, Returned)]
        try:
            settled = await asyncio.to_thread(self._queue.settle, lease, finished, returned)
        except LowtideError:
            raise
        except Exception:  # noqa: BLE001 - the line that the database refuses must be found
            if len(lines) > 1:
                for line in lines:
                    await self._settle(lease, [line])
                return
            _log.exception("settle.rejected", extra={"line": lines[0].line})
            await asyncio.to_thread(self._queue.settle, lease, [_unstorable(lines[0])], [])
            return
        if (gone := len(lines) - settled.finished - settled.returned) > 0:
            _log.warning("settle.fenced", extra={"lines": gone})
        completed = sum(line.succeeded for line in finished)
        dead = sum(line.dead_letter for line in finished)
        self._meter.settled(completed, len(lines) - completed, dead)
        self._meter.judged(settled.in_time, settled.finished - settled.in_time)
        self._meter.interrupted(sum(line.interrupted for line in returned))
        self._meter.spent(sum(line.replica_seconds for line in finished))
        if settled.drained:
            self._publisher.publish(settled.drained)


def size_of(line: Finished | Returned) -> int:
    """Return the bytes that a result occupies until it is written."""
    return len(line.body) if isinstance(line, Finished) and line.body else 0


def in_one_statement(lines: Sequence[Finished | Returned]) -> Sequence[Finished | Returned]:
    """Return the first of these requests, up to 8 MiB of results; a larger one comes alone."""
    size = 0
    for count, line in enumerate(lines):
        size += size_of(line)
        if size > STATEMENT_BYTES:
            return lines[: max(count, 1)]
    return lines[:]


def _unstorable(line: Finished | Returned) -> Finished:
    """Return the failure that replaces a result rejected by the database."""
    return Finished(
        line.batch,
        line.line,
        succeeded=False,
        attempts=1,
        usage=Usage(),
        error_code="result_not_storable",
        error_message="The engine's response could not be stored.",
        dead_letter=True,
    )

"""Settlement of outcomes in micro-batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

from lowtide.batches.metrics import requests_ended
from lowtide.batches.model import RequestStatus
from lowtide.batches.sealed_answers import NO_ANSWERS
from lowtide.core.errors import LowtideError
from lowtide.engines.outcomes import Usage
from lowtide.queue.claims import Finished, Returned
from lowtide.worker.zero_retention import sealed_release, sealed_result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.batches.sealed_answers import Answers
    from lowtide.core.ids import LeaseId
    from lowtide.engines.flow import ByteBudget
    from lowtide.events.publisher import Publisher
    from lowtide.queue.claims import Settled
    from lowtide.queue.store import QueueStore
    from lowtide.worker.lease import LeaseKeeper
    from lowtide.worker.metrics import WorkerMetrics


_log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5
_MAX_BACKLOG: Final = 10
"""Unwritten sets from which on no more should be claimed."""
STATEMENT_BYTES: Final = 8 * 2**20
"""Max bytes of results in one statement, which takes several times as much while it is sent."""


@dataclass(frozen=True, slots=True)
class FlushRules:
    """Rules for a write: once enough requests have ended, or `interval` seconds after the first.

    Enough are as many as lately ended within the interval, but at least `lines`: the faster the
    engine, the larger the sets, and the less a request costs.
    """

    lines: int = 200
    interval: float = 0.1
    most: int = 4000

    def enough(self, ended: int, seconds: float) -> int:
        """Return how many are enough after `ended` requests in as many seconds."""
        return min(max(self.lines, round(ended * self.interval / max(seconds, 1e-6))), self.most)


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
        *,
        answers: Answers = NO_ANSWERS,
    ) -> None:
        self._answers = answers
        self._keeper = keeper
        self._queue = queue
        self._publisher = publisher
        self._meter = meter
        self._rules = rules
        self._budget = budget
        self._waiting: list[Finished | Returned] = []
        self._has_results = asyncio.Event()
        self._flush_due = asyncio.Event()
        self._writing = asyncio.Lock()
        self._unwritten = 0
        self._waiting_bytes = 0
        self._enough = rules.lines
        self._flushed_at = monotonic()

    @property
    def is_congested(self) -> bool:
        """True while writing lags so far that no more requests should be claimed."""
        return len(self._waiting) + self._unwritten >= _MAX_BACKLOG * self._enough

    def add(self, requests: Sequence[Finished | Returned]) -> None:
        """Queue requests to be settled or released."""
        if not requests:
            return
        self._waiting.extend(requests)
        size = sum(map(size_of, requests))
        self._waiting_bytes += size
        self._budget.take_result(size)
        self._has_results.set()
        if len(self._waiting) >= self._enough or self._waiting_bytes >= STATEMENT_BYTES:
            self._flush_due.set()

    def discard(self) -> None:
        """Drop everything: the lease is lost, and its requests with it."""
        self._waiting.clear()
        self._budget.give_result(self._waiting_bytes)
        self._waiting_bytes = 0

    async def run(self, on_written: Callable[[], None]) -> None:
        """Write until cancelled; `on_written` is called after each write."""
        while True:
            await self._has_results.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rules.interval):
                    await self._flush_due.wait()
            await self.flush()
            on_written()

    async def flush(self) -> None:
        """Write everything that waits now; keep it on failure."""
        async with self._writing:
            self._has_results.clear()
            self._flush_due.clear()
            requests, self._waiting = self._waiting, []
            size, self._waiting_bytes = self._waiting_bytes, 0
            began = monotonic()
            self._enough = self._rules.enough(len(requests), began - self._flushed_at)
            self._flushed_at = began
            lease = self._keeper.lease
            self._unwritten = len(requests)
            try:
                while requests and lease is not None:
                    chunk = in_one_statement(requests) if size > STATEMENT_BYTES else requests[:]
                    await asyncio.shield(self._settle(lease, chunk))
                    del requests[: len(chunk)]
                    written = sum(map(size_of, chunk)) if requests else size
                    del chunk
                    size -= written
                    self._budget.give_result(written)
            except LowtideError as error:
                _log.warning(
                    "settle.failed", extra={"lines": len(requests), "reason": error.for_log}
                )
                await asyncio.sleep(_RETRY_SECONDS)
                self.add(requests)
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

    async def _settle(self, lease: LeaseId, requests: Sequence[Finished | Returned]) -> None:
        finished = [request for request in requests if isinstance(request, Finished)]
        returned = [request for request in requests if isinstance(request, Returned)]
        try:
            settled = await asyncio.to_thread(self._store, lease, finished, returned)
        except LowtideError:
            raise
        except Exception:  # noqa: BLE001 - the line that the database refuses must be found
            if len(requests) > 1:
                # By halves: one at a time, a set of thousands would hold up the worker for seconds.
                middle = len(requests) // 2
                await self._settle(lease, requests[:middle])
                await self._settle(lease, requests[middle:])
                return
            _log.exception("settle.rejected", extra={"line": requests[0].line})
            failure = [_unstorable(requests[0])]
            settled = await asyncio.to_thread(self._queue.settle, lease, failure, [])
            requests_ended(RequestStatus.FAILED, settled.finished)
            return
        if (fenced := len(requests) - settled.finished - settled.returned) > 0:
            _log.warning("settle.fenced", extra={"lines": fenced})
        requests_ended(RequestStatus.COMPLETED, settled.completed)
        requests_ended(RequestStatus.FAILED, settled.finished - settled.completed)
        completed = sum(request.succeeded for request in finished)
        dead_letters = sum(request.dead_letter for request in finished)
        self._meter.settled(completed, len(requests) - completed, dead_letters)
        self._meter.judged(settled.in_time, settled.finished - settled.in_time)
        self._meter.interrupted(sum(request.interrupted for request in returned))
        self._meter.spent(sum(request.replica_seconds for request in finished))
        if settled.drained:
            self._publisher.publish(settled.drained)

    def _store(
        self, lease: LeaseId, finished: Sequence[Finished], returned: Sequence[Returned]
    ) -> Settled:
        """Settle and release requests; those with zero retention are encrypted first."""
        return self._queue.settle(
            lease,
            [sealed_result(request, self._answers) for request in finished],
            [sealed_release(request, self._answers) for request in returned],
        )


def size_of(request: Finished | Returned) -> int:
    """Return the bytes that a result occupies until it is written."""
    return len(request.body) if isinstance(request, Finished) and request.body else 0


def in_one_statement(requests: Sequence[Finished | Returned]) -> Sequence[Finished | Returned]:
    """Return the first of these requests, up to 8 MiB of results; a larger one comes alone."""
    size = 0
    for count, request in enumerate(requests):
        size += size_of(request)
        if size > STATEMENT_BYTES:
            return requests[: max(count, 1)]
    return requests[:]


def _unstorable(request: Finished | Returned) -> Finished:
    """Return the failure that replaces a result rejected by the database."""
    return Finished(
        request.batch,
        request.line,
        succeeded=False,
        attempts=request.attempts if isinstance(request, Finished) else 1,
        usage=Usage(),
        error_code="result_not_storable",
        error_message="The engine's response could not be stored.",
        dead_letter=True,
    )

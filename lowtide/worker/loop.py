"""The worker: claims requests, keeps its engine busy, and runs in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from lowtide.core.errors import LowtideError
from lowtide.engines.breaker import BreakerState
from lowtide.telemetry.tracing import UNTRACED
from lowtide.worker.prefetch import MAX_CLAIM, Prefetch, refill_at
from lowtide.worker.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from lowtide.core.durations import Backoff
    from lowtide.core.pools import Pool
    from lowtide.engines.catalog import ModelCatalog
    from lowtide.engines.flow import ByteBudget
    from lowtide.engines.model import Engine
    from lowtide.engines.outcomes import RetryPolicy
    from lowtide.queue.claims import Claim
    from lowtide.queue.store import QueueStore
    from lowtide.telemetry.tracing import Tracer
    from lowtide.worker.engine_watch import EngineWatch
    from lowtide.worker.inputs import InputLoader
    from lowtide.worker.lease import LeaseKeeper
    from lowtide.worker.metrics import WorkerMetrics
    from lowtide.worker.results import ResultWriter


_log = logging.getLogger(__name__)
DRAIN_SECONDS = 10.0
"""Max time that a stopping worker spends on writing its last results."""


@dataclass(frozen=True, slots=True)
class WorkerRules:
    """Settings of a worker; `grace` in seconds, `prefetch` None to follow the engine.

    `served_names` are the engine's names of models that requests name otherwise.
    """

    pool: Pool
    prefetch: int | None
    grace: float
    served_names: Mapping[str, str] = field(default_factory=dict)


class Beside(Protocol):
    """Runs beside a worker."""

    async def run(self) -> None:
        """Run until cancelled."""
        ...


class Worker:
    """One replica of a pool. `run` it in an event loop; `wake` and `stop` are thread-safe."""

    def __init__(
        self,
        queue: QueueStore,
        engine: Engine,
        loader: InputLoader,
        keeper: LeaseKeeper,
        writer: ResultWriter,
        meter: WorkerMetrics,
        backoff: Backoff,
        models: ModelCatalog,
        budget: ByteBudget,
        watch: EngineWatch,
        *,
        rules: WorkerRules,
        policy: RetryPolicy,
        rng: Random,
        tracer: Tracer = UNTRACED,
        beside: Sequence[Beside] = (),
    ) -> None:
        self._queue = queue
        self._engine = engine
        self._keeper = keeper
        self._writer = writer
        self._meter = meter
        self._backoff = backoff
        self._models = models
        self._budget = budget
        self._watch = watch
        self._rules = rules
        self._beside = beside
        self._prefetch = Prefetch(rules.prefetch)
        self._stopping = False
        self._room = asyncio.Event()
        self._work = asyncio.Event()
        self._engine_ready = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner = Runner(
            engine,
            watch,
            loader,
            keeper.utilization,
            writer,
            meter,
            pool=rules.pool,
            policy=policy,
            rng=rng,
            tracer=tracer,
            on_room=self._room.set,
            prefetch=self._prefetch,
            served_names=rules.served_names,
        )

    def wake(self) -> None:
        """Claim now instead of at the next poll."""
        self._backoff.reset()
        self._notify()

    def check_engine(self) -> None:
        """Raise Unavailable while the engine is unavailable; thread-safe."""
        self._watch.check()

    def stop(self) -> None:
        """Stop claiming, let requests finish within the grace period, then exit."""
        self._stopping = True
        self._notify()

    async def run(self) -> None:
        """Run until stopped."""
        self._loop = asyncio.get_running_loop()
        self._watch.on_change = self._room.set
        self._watch.on_open = self._release_soon
        self._watch.on_state = self._engine_is
        try:
            await self._keeper.open(lambda: self._stopping)
            # A failure of any task ends the worker: its lease expires and others take over.
            async with asyncio.TaskGroup() as background:
                background_tasks = [
                    background.create_task(self._record_models()),
                    background.create_task(self._watch.run()),
                    background.create_task(self._keeper.keep(self._runner.abandon)),
                    background.create_task(self._writer.run(self._room.set)),
                ]
                background_tasks += [background.create_task(each.run()) for each in self._beside]
                await self._pull()
                await self._runner.finish(self._rules.grace)
                await self._writer.drain(DRAIN_SECONDS)
                for task in background_tasks:
                    task.cancel()
        finally:
            await self._keeper.close()
            await self._engine.close()

    def _engine_is(self, state: BreakerState, reason: str) -> None:
        self._keeper.engine_is(state, reason)
        if state is BreakerState.CLOSED:
            self._engine_ready.set()

    async def _record_models(self) -> None:
        await self._engine_ready.wait()
        names = await self._engine.models()
        try:
            if names:
                await asyncio.to_thread(self._models.note, names)
        except LowtideError as error:
            _log.warning("models.not_recorded", extra={"reason": error.for_log})

    async def _pull(self) -> None:
        while not self._stopping:
            # Cleared before the claim, so that a notification from here on ends the wait.
            self._room.clear()
            self._work.clear()
            prefetch = self._prefetch.size(self._watch.concurrency)
            capacity = self._watch.capacity(prefetch)
            free = capacity - self._runner.held
            is_full = self._writer.is_congested or self._budget.is_spent
            if free < refill_at(capacity, prefetch) or is_full:
                await self._pause(self._room, 1.0)
                continue
            claims = await self._claim(min(free, MAX_CLAIM))
            if claims:
                self._backoff.reset()
                self._start(claims)
            elif not self._runner.held and self._watch.found_nothing():
                continue
            else:
                began = monotonic()
                await self._pause(self._work, self._backoff.next_delay())
                if not self._runner.held:
                    self._meter.idle(monotonic() - began)

    async def _claim(self, lines: int) -> Sequence[Claim]:
        if self._keeper.lease is None:
            return ()
        lease, pool, lacking = self._keeper.lease, self._rules.pool, self._watch.lacking
        began = monotonic()
        try:
            claims = await asyncio.to_thread(self._queue.claim, lease, pool, lines, lacking)
            self._prefetch.claimed(monotonic() - began)
            if claims or not lacking or not self._watch.is_probing:
                return claims
            # Only requests of missing models wait: one of them is the canary.
            return await asyncio.to_thread(self._queue.claim, lease, pool, lines)
        except LowtideError as error:
            _log.warning("claim.failed", extra={"reason": error.for_log})
            return ()

    def _start(self, claims: Sequence[Claim]) -> None:
        self._meter.dequeued(claims)
        self._runner.start(claims)
        if self._watch.is_shut_off:
            self._release()

    def _release_soon(self) -> None:
        """Release everything in the next loop iteration: the caller first settles its outcomes."""
        asyncio.get_running_loop().call_soon(self._release)

    def _release(self) -> None:
        """Release everything: another worker's engine may be well."""
        self._runner.release(f"The worker's engine is unavailable: {self._watch.reason}")

    async def _pause(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for an event, for at most `seconds`; a stop ends the wait."""
        if self._stopping:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    def _notify(self) -> None:
        if self._loop is None:
            return
        # The loop may have ended meanwhile, with nothing left to notify.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._room.set)
            self._loop.call_soon_threadsafe(self._work.set)


class PullLoop:
    """Runs a worker in a thread. The function creates the loop; its server starts and stops it."""

    def __init__(self, build: Callable[[], Worker]) -> None:
        self._build = build
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start pulling, unless `begin_stop` was called first."""
        if self._stopping.is_set():
            return
        self._worker = self._build()
        # A signal handler may run between any two steps; from here on it finds the worker.
        if self._stopping.is_set():
            return
        self._thread = threading.Thread(target=self._run, args=(self._worker,), name="pull-loop")
        self._thread.start()

    def wake(self) -> None:
        """Claim now instead of at the next poll."""
        if self._worker is not None:
            self._worker.wake()

    def check_engine(self) -> None:
        """Raise Unavailable while the worker's engine is unavailable; other processes have none."""
        if self._worker is not None:
            self._worker.check_engine()

    def begin_stop(self) -> None:
        """Stop claiming; a worker that has not started yet never will."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.stop()

    def join(self) -> None:
        """Wait until all requests are settled or released."""
        if self._thread is not None:
            self._thread.join()

    @staticmethod
    def _run(worker: Worker) -> None:
        try:
            asyncio.run(worker.run())
        except BaseException:
            # A process without its loop would look healthy and do nothing: exit to be restarted.
            _log.exception("pull_loop.failed")
            os.kill(os.getppid(), signal.SIGTERM)
            raise

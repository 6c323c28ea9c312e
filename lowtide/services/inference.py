"""A worker: claims lines, keeps the engine full, and hands on what comes out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

from lowtide.domain.claims import Returned
from lowtide.domain.errors import LowtideError
from lowtide.domain.pools import Pool
from lowtide.domain.settlement import settle_line
from lowtide.ports import EngineRequest
from lowtide.services.scopes import UNTRACED
from lowtide.services.set_spans import SetSpans

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

    from lowtide.domain.backoff import Backoff
    from lowtide.domain.budgets import ByteBudget
    from lowtide.domain.claims import Claim, Finished
    from lowtide.domain.outcomes import RetryPolicy
    from lowtide.ports import Engine, ModelCatalog, Queue, WorkerMeter
    from lowtide.ports.tracing import Tracer
    from lowtide.services.leases import LeaseKeeper
    from lowtide.services.loading import InputLoader
    from lowtide.services.settling import Settler

_log = logging.getLogger(__name__)
_UNRUN_DELAY_SECONDS = 1.0
DRAIN_SECONDS = 10.0
"""Longest time that a stopping worker spends on writing its last results."""


@dataclass(frozen=True, slots=True)
class WorkerRules:
    """Settings of a worker; `grace` in seconds.

    It holds up to `concurrency + prefetch` unfinished lines, and claims more once a quarter of that
    is free.
    """

    pool: Pool
    concurrency: int
    prefetch: int
    claim_size: int
    grace: float

    @property
    def capacity(self) -> int:
        """Most unfinished lines held."""
        return self.concurrency + self.prefetch

    @property
    def refill_at(self) -> int:
        """Free places worth a claim."""
        return max(1, self.capacity // 4)


class Worker:
    """One replica of a pool. `run` it in an event loop; `wake` and `stop` work from any thread."""

    def __init__(
        self,
        queue: Queue,
        engine: Engine,
        loader: InputLoader,
        keeper: LeaseKeeper,
        settler: Settler,
        meter: WorkerMeter,
        backoff: Backoff,
        models: ModelCatalog,
        budget: ByteBudget,
        *,
        rules: WorkerRules,
        policy: RetryPolicy,
        rng: Random,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._queue = queue
        self._engine = engine
        self._loader = loader
        self._keeper = keeper
        self._settler = settler
        self._meter = meter
        self._backoff = backoff
        self._models = models
        self._budget = budget
        self._rules = rules
        self._policy = policy
        self._rng = rng
        self._tracer = tracer
        self._keys = count()
        self._held: dict[int, Claim] = {}
        self._sets: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._room = asyncio.Event()
        self._work = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def wake(self) -> None:
        """Look for work now: there is some."""
        self._backoff.reset()
        self._notify()

    def stop(self) -> None:
        """Claim nothing more, let work in hand finish within the grace period, then leave."""
        self._stopping = True
        self._notify()

    async def run(self) -> None:
        """Work until stopped."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._keeper.open(lambda: self._stopping)
            # A failure of either ends the worker: its lease expires and others take over.
            async with asyncio.TaskGroup() as background:
                beside = [
                    background.create_task(self._note_models()),
                    background.create_task(self._keeper.keep(self._abandon)),
                    background.create_task(self._settler.run(self._room.set)),
                ]
                await self._pull()
                await self._finish_in_hand()
                for task in beside:
                    task.cancel()
        finally:
            await self._keeper.close()
            await self._engine.close()

    async def _note_models(self) -> None:
        names = await self._engine.models()
        try:
            if names:
                await asyncio.to_thread(self._models.note, names)
        except LowtideError as error:
            _log.warning("models.unnoted", extra={"reason": error.message})

    async def _pull(self) -> None:
        while not self._stopping:
            # Before looking: what is notified from now on ends the wait.
            self._room.clear()
            self._work.clear()
            free = self._rules.capacity - len(self._held)
            is_full = self._settler.is_congested or self._budget.is_spent
            if free < self._rules.refill_at or is_full:
                await self._pause(self._room, 1.0)
                continue
            claims = await self._claim(min(free, self._rules.claim_size))
            if claims:
                self._backoff.reset()
                self._start(claims)
            else:
                began = monotonic()
                await self._pause(self._work, self._backoff.next_delay())
                if not self._held:
                    self._meter.idle(monotonic() - began)

    async def _claim(self, lines: int) -> Sequence[Claim]:
        if self._keeper.lease is None:
            return ()
        try:
            return await asyncio.to_thread(
                self._queue.claim, self._keeper.lease, self._rules.pool, lines
            )
        except LowtideError as error:
            _log.warning("claim.failed", extra={"reason": error.message})
            return ()

    def _start(self, claims: Sequence[Claim]) -> None:
        self._meter.dequeued(claims)
        began = self._keeper.pace.took(len(claims))
        held = {next(self._keys): claim for claim in claims}
        self._held |= held
        task = asyncio.create_task(self._run_set(held, began))
        self._sets.add(task)
        task.add_done_callback(self._sets.discard)

    async def _run_set(self, held: Mapping[int, Claim], began: float) -> None:
        """Run lines as one span. Tracing that fails is logged, and its lines are run without."""
        try:
            spans = SetSpans(self._tracer, self._rules.pool, list(held.values()))
            with spans.working():
                await self._run_lines(held, began, spans)
        except Exception:  # noqa: BLE001 - the lease lives on: nobody else would run the lines
            _log.exception("tracing.failed")
            left = {key: claim for key, claim in held.items() if key in self._held}
            if left:
                untraced = SetSpans(UNTRACED, self._rules.pool, list(left.values()))
                await self._run_lines(left, began, untraced)

    async def _run_lines(self, held: Mapping[int, Claim], began: float, spans: SetSpans) -> None:
        """Run lines; whatever fails, none stays in hand. `began` is the pace's share at their start.

        The lease is renewed as long as the worker lives: a line that a fault left in its hands
        would never be run again.
        """
        parts = self._loader.parts(held)
        if len(parts) == 1:
            await self._run_part(held, began, spans)
            return
        async with asyncio.TaskGroup() as running:
            for part in parts:
                running.create_task(self._run_part(part, began, spans))

    async def _run_part(self, held: Mapping[int, Claim], began: float, spans: SetSpans) -> None:
        try:
            loaded = await self._loader.load(held)
            self._end(loaded.settled, spans)
            groups = self._engine.run(self._requests(held, loaded.bodies, spans))
            # The engine lets go of each body as its request ends: nobody else may hold it.
            del loaded
            async for group in groups:
                keys = [key for key, _ in group]
                self._meter.ran(out for _, out in group)
                part = self._let_go(keys) - began
                ended = [
                    settle_line(held[key], out, self._policy, self._rng, replica_seconds=part)
                    for key, out in group
                ]
                self._settler.add(ended)
                spans.add(ended)
        except Exception:  # noqa: BLE001
            _log.exception("lines.failed")
            left = {key: _unrun(claim) for key, claim in held.items() if key in self._held}
            self._end(left, spans)
        finally:
            self._loader.release(held)

    def _end(self, settled: Mapping[int, Finished | Returned], spans: SetSpans) -> None:
        if settled:
            self._let_go(list(settled))
            self._settler.add(list(settled.values()))
            spans.add(list(settled.values()))

    def _let_go(self, keys: Sequence[int]) -> float:
        """Take lines out of hand; return the pace's share at their end."""
        for key in keys:
            self._held.pop(key, None)
        self._loader.release(keys)
        self._room.set()
        return self._keeper.pace.ended(len(keys))

    def _requests(
        self, held: Mapping[int, Claim], bodies: Mapping[int, bytes], spans: SetSpans
    ) -> list[EngineRequest]:
        return [
            EngineRequest(
                key=key,
                endpoint=held[key].endpoint,
                body=body,
                attempt=held[key].attempts + 1,
                spot=self._rules.pool is Pool.SPOT,
                interruptions=held[key].interruptions,
                trace=spans.trace_of(held[key].batch),
            )
            for key, body in bodies.items()
        ]

    def _abandon(self) -> None:
        """Forget lines that were given to somebody else."""
        for task in self._sets:
            task.cancel()
        self._held.clear()
        self._loader.release_all()
        self._settler.discard()

    async def _finish_in_hand(self) -> None:
        if self._sets:
            await asyncio.wait(self._sets, timeout=self._rules.grace)
        for task in list(self._sets):
            task.cancel()
        await asyncio.gather(*self._sets, return_exceptions=True)
        if self._held:
            _log.info("worker.gives_back", extra={"lines": len(self._held)})
        spot = self._rules.pool is Pool.SPOT
        self._settler.add(
            [
                Returned(claim.batch, claim.line, "The worker was stopped", interrupted=spot)
                for claim in self._held.values()
            ]
        )
        self._held.clear()
        await self._settler.drain(DRAIN_SECONDS)

    async def _pause(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for an event, for at most `seconds`; stopping ends every wait."""
        if self._stopping:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    def _notify(self) -> None:
        if self._loop is None:
            return
        # The loop may have ended meanwhile: then there is nobody left to notify.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._room.set)
            self._loop.call_soon_threadsafe(self._work.set)


def _unrun(claim: Claim) -> Returned:
    reason = "The worker failed to run the line"
    return Returned(claim.batch, claim.line, reason, delay=_UNRUN_DELAY_SECONDS)

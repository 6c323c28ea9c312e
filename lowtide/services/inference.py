"""A worker: claims lines, keeps the engine full, and hands on what comes out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

from lowtide.domain.claims import Finished, Returned
from lowtide.domain.errors import LowtideError, NotFound
from lowtide.domain.lines import UnsendableBody, body_of
from lowtide.domain.outcomes import Usage
from lowtide.domain.pools import Pool
from lowtide.domain.settlement import settle_line
from lowtide.ports import EngineRequest
from lowtide.services.scopes import UNTRACED
from lowtide.services.set_spans import SetSpans

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from lowtide.domain.backoff import Backoff
    from lowtide.domain.claims import Claim
    from lowtide.domain.outcomes import RetryPolicy
    from lowtide.ports import Engine, ModelCatalog, ObjectStore, Queue, WorkerMeter
    from lowtide.ports.tracing import Tracer
    from lowtide.services.leases import LeaseKeeper
    from lowtide.services.settling import Settler

_log = logging.getLogger(__name__)
_UNREADABLE_DELAY_SECONDS = 1.0
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
        objects: ObjectStore,
        keeper: LeaseKeeper,
        settler: Settler,
        meter: WorkerMeter,
        backoff: Backoff,
        models: ModelCatalog,
        *,
        rules: WorkerRules,
        policy: RetryPolicy,
        rng: Random,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._queue = queue
        self._engine = engine
        self._objects = objects
        self._keeper = keeper
        self._settler = settler
        self._meter = meter
        self._backoff = backoff
        self._models = models
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
            if free < self._rules.refill_at or self._settler.is_congested:
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
        try:
            requests, unsendable = await asyncio.to_thread(self._load, held, spans)
            for key, reason in unsendable.items():
                self._end_rest({key: held[key]}, partial(_unsendable, reason=reason), spans)
            async for group in self._engine.run(requests):
                keys = [key for key, _ in group]
                self._meter.ran(out for _, out in group)
                part = self._let_go(keys) - began
                ended = [
                    settle_line(held[key], out, self._policy, self._rng, replica_seconds=part)
                    for key, out in group
                ]
                self._settler.add(ended)
                spans.add(ended)
        except NotFound:
            self._end_rest(held, _lost_input, spans)
        except LowtideError as error:
            _log.warning("input.unreadable", extra={"reason": error.message})
            self._end_rest(held, partial(_unread, reason=error.message), spans)
        except Exception:  # noqa: BLE001
            _log.exception("lines.failed")
            reason = "The worker failed to run the line"
            self._end_rest(held, partial(_unread, reason=reason), spans)

    def _end_rest(
        self,
        held: Mapping[int, Claim],
        ending: Callable[[Claim], Finished | Returned],
        spans: SetSpans,
    ) -> None:
        left = [key for key in held if key in self._held]
        self._let_go(left)
        ended = [ending(held[key]) for key in left]
        self._settler.add(ended)
        spans.add(ended)

    def _let_go(self, keys: Sequence[int]) -> float:
        """Take lines out of hand; return the pace's share at their end."""
        for key in keys:
            self._held.pop(key, None)
        self._room.set()
        return self._keeper.pace.ended(len(keys))

    def _load(
        self, held: Mapping[int, Claim], spans: SetSpans
    ) -> tuple[list[EngineRequest], dict[int, str]]:
        """Read the bodies, with one call to the store for each input file.

        Returns the requests, and why others can never be sent.
        """
        unsendable: dict[int, str] = {}
        by_input: dict[str, list[int]] = {}
        for key, claim in held.items():
            by_input.setdefault(claim.input_key, []).append(key)
        requests: list[EngineRequest] = []
        for input_key, keys in by_input.items():
            ranges = [(held[key].start, held[key].length) for key in keys]
            lines = self._objects.read_ranges(input_key, ranges)
            for key, line in zip(keys, lines, strict=True):
                try:
                    body = body_of(line)
                except UnsendableBody as error:
                    unsendable[key] = str(error)
                    continue
                request = EngineRequest(
                    key=key,
                    endpoint=held[key].endpoint,
                    body=body,
                    attempt=held[key].attempts + 1,
                    spot=self._rules.pool is Pool.SPOT,
                    interruptions=held[key].interruptions,
                    trace=spans.trace_of(held[key].batch),
                )
                requests.append(request)
        return requests, unsendable

    def _abandon(self) -> None:
        """Forget lines that were given to somebody else."""
        for task in self._sets:
            task.cancel()
        self._held.clear()
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


def _lost_input(claim: Claim) -> Finished:
    return Finished(
        claim.batch,
        claim.line,
        succeeded=False,
        attempts=claim.attempts,
        usage=Usage(),
        error_code="input_missing",
        error_message="The input file is no longer in the object store.",
    )


def _unsendable(claim: Claim, reason: str) -> Finished:
    return Finished(
        claim.batch,
        claim.line,
        succeeded=False,
        attempts=claim.attempts,
        usage=Usage(),
        error_code="invalid_unicode",
        error_message=f"Line {claim.line} cannot be sent: {reason}.",
    )


def _unread(claim: Claim, reason: str) -> Returned:
    return Returned(claim.batch, claim.line, reason, delay=_UNREADABLE_DELAY_SECONDS)

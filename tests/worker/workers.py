"""A worker with fakes: a scripted engine, a queue that fails on demand, and recorded metrics."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from lowtide.core.durations import ExponentialBackoff
from lowtide.core.errors import Unavailable
from lowtide.core.pools import Pool
from lowtide.engines.breaker import BreakerState, Probed
from lowtide.engines.catalog import ModelCatalog
from lowtide.engines.flow import ByteBudget
from lowtide.engines.outcomes import Answered, Outcome, RetryPolicy, Usage
from lowtide.events.publisher import Publisher
from lowtide.objects.store import ObstoreObjects
from lowtide.queue.rates import RateStore
from lowtide.queue.store import QueueStore
from lowtide.telemetry.tracing import UNTRACED
from lowtide.worker.engine_watch import EngineWatch
from lowtide.worker.inputs import InputLoader
from lowtide.worker.lease import LeaseKeeper, Utilization
from lowtide.worker.loop import Worker, WorkerRules
from lowtide.worker.metrics import WorkerMetrics
from lowtide.worker.results import FlushRules, ResultWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence

    from lowtide.core.ids import LeaseId
    from lowtide.engines.load import EngineLoad
    from lowtide.engines.model import EngineRequest, Ping
    from lowtide.engines.telemetry import EngineTelemetry
    from lowtide.events.model import Event
    from lowtide.queue.claims import Claim, Finished, Returned, Settled
    from lowtide.telemetry.tracing import Tracer
    from tests.worlds import World

PATIENCE = 60.0


async def until(condition: Callable[[], object], *, within: float = PATIENCE) -> None:
    """Wait until `condition` is true; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "The condition never became true."
        await asyncio.sleep(0.005)


def good(_: EngineRequest) -> Outcome:
    """Answer 200."""
    return Answered(200, b'{"ok":true}', "req", Usage(1, 2))


class ScriptedEngine:
    """Port Engine: answers by `answer`; with `hold`, only after `release` was called."""

    def __init__(
        self, answer: Callable[[EngineRequest], Outcome] = good, *, hold: bool = False
    ) -> None:
        self.answer = answer
        self.requests: list[EngineRequest] = []
        self.running = 0
        self.peak = 0
        self.closed = False
        self.probes: list[Ping | None] = []
        self.probed = Probed(well=True, answers=True)
        self.limits: list[int] = []
        self.reports: EngineTelemetry | None = None
        self._released = asyncio.Event()
        if not hold:
            self._released.set()

    def release(self) -> None:
        self._released.set()

    async def run(
        self, requests: Sequence[EngineRequest]
    ) -> AsyncIterator[Sequence[tuple[int, Outcome]]]:
        self.requests += requests
        self.running += len(requests)
        self.peak = max(self.peak, self.running)
        remaining = len(requests)
        try:
            for request in requests:
                await self._released.wait()
                outcome = self.answer(request)
                self.running -= 1
                remaining -= 1
                yield [(request.key, outcome)]
        finally:
            self.running -= remaining

    async def probe(self, ping: Ping | None = None) -> Probed:
        self.probes.append(ping)
        return self.probed

    def limit(self, in_flight: int) -> None:
        self.limits.append(in_flight)

    async def load(self) -> EngineLoad | None:
        return None

    async def telemetry(self) -> EngineTelemetry | None:
        return self.reports

    async def models(self) -> Sequence[str]:
        return ("model-a", "model-b")

    async def close(self) -> None:
        self.closed = True


class FlakyQueue(QueueStore):
    """A wrapper of a queue that fails or blocks on demand and counts calls."""

    def __init__(self, inner: QueueStore) -> None:
        self._inner = inner
        self.failures: dict[str, deque[Exception]] = {}
        self.calls: dict[str, int] = {}
        self.holds: dict[str, threading.Event] = {}
        self.reached: dict[str, threading.Event] = {}

    def fail(self, name: str, times: int, error: Exception | None = None) -> None:
        self.failures[name] = deque([error or Unavailable("gone")] * times)

    def hold(self, name: str) -> threading.Event:
        """Block the next call of `name` until the returned event is set."""
        self.reached[name] = threading.Event()
        self.holds[name] = threading.Event()
        return self.holds[name]

    def _call(self, name: str, *arguments: Any) -> Any:
        self.calls[name] = self.calls.get(name, 0) + 1
        if failures := self.failures.get(name):
            raise failures.popleft()
        if name in self.holds:
            release = self.holds.pop(name)
            self.reached[name].set()
            assert release.wait(PATIENCE)
        return getattr(self._inner, name)(*arguments)

    def open_lease(self, pool: Pool, worker: str) -> LeaseId:
        lease: LeaseId = self._call("open_lease", pool, worker)
        return lease

    def renew(self, lease: LeaseId) -> bool:
        return bool(self._call("renew", lease))

    def claim(
        self, lease: LeaseId, pool: Pool, lines: int, without: frozenset[str] = frozenset()
    ) -> Sequence[Claim]:
        claims: Sequence[Claim] = self._call("claim", lease, pool, lines, without)
        return claims

    def report_engine(self, lease: LeaseId, state: BreakerState, reason: str) -> None:
        self._call("report_engine", lease, state, reason)

    def settle(
        self, lease: LeaseId, finished: Sequence[Finished], returned: Sequence[Returned]
    ) -> Settled:
        settled: Settled = self._call("settle", lease, finished, returned)
        return settled

    def close_lease(self, lease: LeaseId) -> None:
        self._call("close_lease", lease)


@dataclass
class Meter(WorkerMetrics):
    """Metrics of one worker, in memory."""

    claimed: int = 0
    completed: int = 0
    failed: int = 0
    dead_letters: int = 0
    in_time: int = 0
    late: int = 0
    interruptions: int = 0
    replica_seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)
    idled: list[float] = field(default_factory=list)
    engine_faults: list[str] = field(default_factory=list)
    engine_states: list[BreakerState] = field(default_factory=list)
    concurrency: list[int] = field(default_factory=list)
    reports: list[EngineTelemetry | None] = field(default_factory=list)
    tokens: tuple[int, int] = (0, 0)

    def dequeued(self, claims: Sequence[Claim]) -> None:
        self.claimed += len(claims)

    def ran(self, outcomes: Iterable[Outcome]) -> None:
        self.outcomes.extend(outcomes)

    def settled(self, completed: int, failed: int, dead_letters: int) -> None:
        self.completed += completed
        self.failed += failed
        self.dead_letters += dead_letters

    def judged(self, in_time: int, late: int) -> None:
        self.in_time += in_time
        self.late += late

    def spent(self, replica_seconds: float) -> None:
        self.replica_seconds += replica_seconds

    def interrupted(self, lines: int) -> None:
        self.interruptions += lines

    def idle(self, seconds: float) -> None:
        self.idled.append(seconds)

    def engine_failed(self, kind: str) -> None:
        self.engine_faults.append(kind)

    def engine_reports(self, telemetry: EngineTelemetry | None) -> None:
        self.reports.append(telemetry)

    def allowed(self, in_flight: int) -> None:
        self.concurrency.append(in_flight)

    def engine_is(self, state: BreakerState) -> None:
        self.engine_states.append(state)


@dataclass
class Sink:
    """Port EventSink: records events, and accepts those for which `accepts` is true."""

    accepts: Callable[[Event], bool] = lambda _: True
    sent: list[Event] = field(default_factory=list)

    def publish(self, event: Event) -> bool:
        self.sent.append(event)
        return self.accepts(event)


class WaitingPublisher(Publisher):
    """A publisher whose callers wait until all events are sent."""

    def publish(self, events: Iterable[Event]) -> None:
        super().publish(events)
        assert self.drain(10)


def input_store(
    world: World,
    lines: int,
    body: bytes | None = None,
    *,
    odd: Mapping[int, bytes] | None = None,
    store: ObstoreObjects | None = None,
) -> ObstoreObjects:
    """Return a store with the input of every batch: line n starts at byte 100 n and has 90 bytes.

    A line is `body`, unless `odd` has one for its number.
    """
    store = store or ObstoreObjects("memory://")
    for row in world.rows("SELECT DISTINCT input_key FROM batches"):
        with store.open_writer(row.input_key) as writer:
            writer.write(b" " * 100)
            for number in range(1, lines + 1):
                line = (odd or {}).get(number) or body or b'{"body":{"n":%d}}' % number
                writer.write(line.ljust(90)[:90] + b" " * 10)
    return store


def lease_keeper(
    world: World,
    queue: FlakyQueue,
    *,
    pool: Pool = Pool.SPOT,
    duration: float = 30.0,
    full: int = 8,
) -> LeaseKeeper:
    """Return the keeper of a worker's lease."""
    rates = RateStore(world.worker)
    return LeaseKeeper(queue, rates, Utilization(full), pool=pool, worker="w", duration=duration)


@dataclass
class Bench:
    """A worker and all its collaborators."""

    world: World
    store: ObstoreObjects
    engine: ScriptedEngine
    queue: FlakyQueue
    meter: Meter
    sink: Sink
    backoff: ExponentialBackoff
    keeper: LeaseKeeper
    watch: EngineWatch
    worker: Worker

    @classmethod
    def of(
        cls,
        world: World,
        engine: ScriptedEngine,
        *,
        lines: int,
        store: ObstoreObjects | None = None,
        pool: Pool = Pool.SPOT,
        concurrency: int = 8,
        prefetch: int = 4,
        grace: float = 5.0,
        lease: float = 30.0,
        backoff: ExponentialBackoff | None = None,
        flush: FlushRules | None = None,
        policy: RetryPolicy | None = None,
        tracer: Tracer = UNTRACED,
        memory: int = 2**28,
        patience: float = 180.0,
        served_names: Mapping[str, str] | None = None,
    ) -> Bench:
        budget = ByteBudget(memory)
        store = store or input_store(world, lines)
        queue, meter, sink = FlakyQueue(world.queue_on(world.worker, lease)), Meter(), Sink()
        backoff = backoff or ExponentialBackoff(0.01, 0.05)
        keeper = lease_keeper(world, queue, pool=pool, duration=lease, full=concurrency)
        publisher = WaitingPublisher(sink, world.outbox)
        writer = ResultWriter(
            keeper, queue, publisher, meter, flush or FlushRules(100, 0.01), budget
        )
        policy, rng = policy or RetryPolicy(3, 0.001, 0.001), Random(0)  # noqa: S311
        watch = EngineWatch(
            engine, meter, concurrency=concurrency, cap=policy.cap, patience=patience, rng=rng
        )
        worker = Worker(
            queue, engine, InputLoader(store, budget, rng),
            keeper, writer, meter, backoff, ModelCatalog(world.worker), budget, watch,
            rules=WorkerRules(pool, prefetch, grace, served_names or {}),
            policy=policy,
            rng=rng,
            tracer=tracer,
        )  # fmt: skip
        return cls(world, store, engine, queue, meter, sink, backoff, keeper, watch, worker)

    def finished(self) -> int:
        return int(self.world.value("SELECT count(*) FROM results"))


def work_during(bench: Bench, during: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a bench's worker beside a coroutine, and stop the worker afterwards."""

    async def both() -> None:
        running = asyncio.create_task(bench.worker.run())
        try:
            await during()
            bench.worker.stop()
            await asyncio.wait_for(running, 15)
        finally:
            running.cancel()
            bench.engine.release()

    asyncio.run(both())

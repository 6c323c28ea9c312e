"""A worker's requests in flight follow its engine."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from lowtide.app import App
from lowtide.core.errors import Unavailable
from lowtide.core.ids import BatchId, new_id
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from lowtide.engines.breaker import Probed
from lowtide.engines.concurrency import START, Concurrency
from lowtide.engines.load import EngineLoad, Interval, LoadMeter, read_load
from lowtide.engines.outcomes import Answered, NoAnswer, Unanswered
from lowtide.engines.spare import SpareConcurrency
from lowtide.objects.store import ObstoreObjects
from lowtide.queue.claims import Claim
from lowtide.queue.rates import ConcurrencyStore
from lowtide.settings import EngineKind, EngineShare, Settings
from lowtide.worker import build
from lowtide.worker.engine_watch import EngineWatch
from lowtide.worker.lease import Utilization
from lowtide.worker.tuning import ConcurrencyMemory, ConcurrencyTuner, Strategy
from tests.worker.workers import Meter, ScriptedEngine, input_store, until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from lowtide.engines.outcomes import Outcome
    from tests.worlds import World

TICK = 0.002


class ReportingEngine(ScriptedEngine):
    """An engine of a fixed size that is always full, as far as its reports say."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size: int | None = size
        self.asked = 0
        self.meter = LoadMeter()

    def fill(self, requests: int) -> None:
        """Have at least so many requests in flight."""
        while self.meter.take().at_end < requests:
            self.meter.begin()

    async def load(self) -> EngineLoad | None:
        self.asked += 1
        if self.size is None:
            return None
        in_flight = self.limits[-1]
        self.fill(in_flight)
        return EngineLoad(min(in_flight, self.size), max(0, in_flight - self.size))


class Tuned:
    """A tuner with its watch, both running."""

    def __init__(
        self,
        engine: ReportingEngine,
        search: Strategy | None = None,
        ask_again: float = 30.0,
    ) -> None:
        self.engine = engine
        self.watch = EngineWatch(
            engine,
            Meter(),
            concurrency=1024,
            cap=0.01,
            patience=1.0,
            rng=Random(0),  # noqa: S311
        )
        self.utilization = Utilization(1024)
        self.search = Concurrency(1024) if search is None else search
        self.tuner = ConcurrencyTuner(
            engine,
            engine.meter,
            self.watch,
            self.utilization,
            self.search,
            tick=TICK,
            ask_again=ask_again,
        )

    async def judge(self, outcome: Outcome) -> None:
        claim = Claim(BatchId(new_id()), "/v1/embeddings", "k", 1, 0, 1, 0, 0)
        await self.watch.judge(claim, outcome)


@contextmanager
def _tasks(tuned: Tuned) -> Iterator[None]:
    tasks = [asyncio.ensure_future(each.run()) for each in (tuned.watch, tuned.tuner)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def with_tuner(size: int, during: Callable[[Tuned], Coroutine[None, None, None]]) -> Tuned:
    """Run a tuner on an engine of this size, beside a coroutine."""

    async def main() -> Tuned:
        tuned = Tuned(ReportingEngine(size))
        assert (tuned.watch.concurrency, tuned.engine.limits) == (START, [START])
        with _tasks(tuned):
            await until(lambda: tuned.search.is_settled)
            await during(tuned)
        return tuned

    return asyncio.run(main())


def test_watch_and_engine_get_the_limit_that_was_found() -> None:
    async def during(tuned: Tuned) -> None:
        await until(lambda: 101 <= tuned.watch.concurrency <= 130)
        assert tuned.engine.limits[-1] == tuned.watch.concurrency

    with_tuner(100, during)


def test_utilization_counts_at_the_settled_limit_alone() -> None:
    async def during(tuned: Tuned) -> None:
        await until(lambda: tuned.utilization.full == tuned.watch.concurrency <= 130)
        tuned.engine.size = 1000
        await until(lambda: tuned.utilization.full == sys.maxsize)
        await until(lambda: tuned.utilization.full == tuned.watch.concurrency > 1000)

    with_tuner(100, during)


def test_refused_requests_halve_the_limit() -> None:
    async def during(tuned: Tuned) -> None:
        await until(lambda: 101 <= tuned.watch.concurrency <= 130)
        before = tuned.watch.concurrency
        for _ in range(5):
            # Refusals of one round count once.
            await tuned.judge(Answered(429, b"{}", retry_after=0.01))
        assert tuned.watch.concurrency == before // 2
        assert tuned.engine.limits[-1] == 0
        after = len(tuned.engine.limits)
        await until(lambda: tuned.engine.limits[-1] > before // 2)
        assert tuned.engine.limits[after] == before // 2
        assert max(tuned.engine.limits[after:]) < before

    with_tuner(100, during)


def test_search_starts_again_after_the_engine_was_unavailable() -> None:
    async def during(tuned: Tuned) -> None:
        await until(lambda: tuned.watch.concurrency > 100)
        tuned.engine.probed = Probed(well=False, reason="gone")
        for _ in range(3):
            await tuned.judge(Unanswered(NoAnswer.UNREACHED, "gone"))
        assert tuned.watch.is_shut_off
        await until(lambda: tuned.watch.concurrency == START)
        tuned.engine.size = 300
        tuned.engine.probed = Probed(well=True, answers=True)
        await until(lambda: tuned.watch.concurrency > 300)

    with_tuner(100, during)


FLEET = FleetPool("l4", Pool.SPOT)


class Records(ConcurrencyStore):
    """Counts what is recorded, and fails on demand."""

    def __init__(self, world: World, revision: str = "", *, place: FleetPool = FLEET) -> None:
        super().__init__(world.worker, place, revision)
        self.recorded: list[int] = []
        self.is_down = False
        self.reads = 0

    def read(self) -> int | None:
        found = super().read()
        self.reads += 1
        return found

    def record(self, concurrency: int) -> None:
        if self.is_down:
            raise Unavailable("gone")
        super().record(concurrency)
        self.recorded.append(concurrency)


def remembering(
    store: Records, size: int, during: Callable[[Tuned], Coroutine[None, None, None]]
) -> Tuned:
    """Run a tuner with a memory on an engine of this size, beside a coroutine."""

    async def main() -> Tuned:
        search = Concurrency(1024)
        tuned = Tuned(ReportingEngine(size), search)
        memory = ConcurrencyMemory(store, search, tuned.tuner, interval=TICK)
        known = store.read()
        running = asyncio.ensure_future(memory.run())
        try:
            if known is not None:
                # Before the search takes its first step.
                await until(lambda: tuned.watch.concurrency == known)
            with _tasks(tuned):
                await during(tuned)
        finally:
            running.cancel()
        return tuned

    return asyncio.run(main())


def test_next_worker_starts_with_what_was_found(world: World) -> None:
    first, second = Records(world), Records(world)

    async def until_recorded(_: Tuned) -> None:
        await until(lambda: first.recorded)

    async def until_settled(tuned: Tuned) -> None:
        await until(lambda: tuned.search.is_settled)
        await until(lambda: tuned.engine.asked > 50)

    remembering(first, 200, until_recorded)
    assert 200 < first.recorded[-1] <= 256
    found = remembering(second, 200, until_settled)
    assert found.engine.limits == [START, first.recorded[-1]]
    # The same number is not written again.
    assert second.recorded == []


class Settled(Concurrency):
    """A search that has found 700; counts what it observed."""

    observed = 0

    def restart(self) -> None:
        super().restart()
        self.limit, self.is_settled = 700, True

    def observe(self, now: float, interval: Interval, load: EngineLoad | None) -> None:
        del now, interval, load
        self.observed += 1


def test_number_is_recorded_for_an_engine_that_reports_alone(world: World) -> None:
    store = Records(world)

    async def main() -> None:
        search = Settled(1024)
        tuned = Tuned(ReportingEngine(200), search, ask_again=TICK)
        tuned.engine.size = None
        memory = ConcurrencyMemory(store, search, tuned.tuner, interval=TICK)
        running = asyncio.ensure_future(memory.run())
        with _tasks(tuned):
            await until(lambda: store.reads)
            seen = search.observed
            await until(lambda: search.observed > seen + 20)
            assert store.recorded == []
            tuned.engine.size = 200
            await until(lambda: store.recorded)
        running.cancel()

    asyncio.run(main())
    assert store.recorded == [700]


@pytest.mark.parametrize(
    "other",
    [{"revision": "r2"}, {"place": FleetPool("l4", Pool.DEDICATED)}],
    ids=["revision", "pool"],
)
def test_worker_of_another_engine_searches_from_the_start(
    world: World, other: dict[str, Any]
) -> None:
    Records(world).record(800)
    store = Records(world, **other)

    async def until_recorded(_: Tuned) -> None:
        await until(lambda: store.recorded)

    tuned = remembering(store, 100, until_recorded)
    assert max(tuned.engine.limits) < 800
    assert tuned.engine.limits[:2] == [START, 2 * START]


def test_limit_too_high_for_a_smaller_engine_is_left_and_recorded(world: World) -> None:
    store = Records(world)
    store.record(800)

    async def until_recorded(_: Tuned) -> None:
        await until(lambda: store.recorded[1:])
        # Settled means lowered: nothing between is recorded.
        assert 50 < store.recorded[-1] <= 65

    tuned = remembering(store, 50, until_recorded)
    assert tuned.engine.limits[1] == 800


def test_search_after_an_outage_starts_with_what_was_found(world: World) -> None:
    store = Records(world)

    async def during(tuned: Tuned) -> None:
        await until(lambda: store.recorded)
        tuned.engine.probed = Probed(well=False, reason="gone")
        for _ in range(3):
            await tuned.judge(Unanswered(NoAnswer.UNREACHED, "gone"))
        await until(lambda: not tuned.search.is_settled)
        assert tuned.watch.concurrency == store.recorded[-1]

    remembering(store, 200, during)


def test_failed_record_is_repeated(world: World, caplog: pytest.LogCaptureFixture) -> None:
    store = Records(world)
    store.is_down = True

    async def during(_: Tuned) -> None:
        await until(lambda: "worker.concurrency_not_recorded" in caplog.text)
        store.is_down = False
        await until(lambda: store.recorded)

    remembering(store, 100, during)
    assert store.read() == store.recorded[-1]


def test_missing_report_changes_nothing() -> None:
    async def during(tuned: Tuned) -> None:
        await until(lambda: 101 <= tuned.watch.concurrency <= 130)
        before, tuned.engine.size = tuned.watch.concurrency, None
        asked = tuned.engine.asked
        await until(lambda: tuned.engine.asked > asked + 20)
        assert tuned.watch.concurrency == before

    with_tuner(100, during)


def test_engine_that_reports_nothing_is_not_asked_at_every_tick() -> None:
    async def main() -> int:
        engine = ReportingEngine(100)
        engine.size = None
        tuned = Tuned(engine)
        with _tasks(tuned):
            await until(lambda: engine.asked)
            await asyncio.sleep(20 * TICK)
        return engine.asked

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize(
    ("strategy", "warnings"),
    [(SpareConcurrency(1024, None), ["worker.engine_load_unknown"]), (Concurrency(1024), [])],
    ids=["spare", "all"],
)
def test_spare_worker_of_an_engine_without_reports_says_so_once(
    strategy: Strategy, warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        engine = ReportingEngine(100)
        engine.size = None
        tuned = Tuned(engine, strategy, ask_again=TICK)
        with _tasks(tuned):
            await until(lambda: engine.asked > 2)

    asyncio.run(main())
    logged = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.message for record in logged] == warnings


@contextmanager
def batching_server(size: int) -> Iterator[str]:
    command = [sys.executable, "-m", "bench.engine_server", "serve", str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def fetch(url: str, method: str = "GET") -> bytes:
    return httpx.request(method, url, timeout=10, trust_env=False).content


async def reached(url: str, size: int) -> None:
    """Wait until the engine is full, and only a few requests wait in it."""
    for _ in range(1200):
        load = read_load(await asyncio.to_thread(fetch, f"{url}/metrics"))
        assert load is not None
        if load.running == size and 0 < load.waiting <= size / 2:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"The engine has {load} instead of {size} requests.")


def test_worker_fills_a_batching_engine_and_follows_it_over_http(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = world.batch(5000)
    input_store(world, 5000, store=ObstoreObjects(f"file://{tmp_path}"))
    monkeypatch.setattr(build, "ConcurrencyTuner", partial(ConcurrencyTuner, tick=0.2))
    monkeypatch.setattr(build, "ConcurrencyMemory", partial(ConcurrencyMemory, interval=0.2))

    async def main(url: str, app: App) -> None:
        worker = app.build_worker(Pool.SPOT)
        running = asyncio.create_task(worker.run())
        await reached(url, 12)
        await asyncio.to_thread(fetch, f"{url}/resize/60", "POST")
        await reached(url, 60)
        place = FleetPool(DEFAULT_FLEET, Pool.SPOT)
        store = ConcurrencyStore(world.worker, place, "r1")
        await until(lambda: (store.read() or 0) > 60)
        worker.stop()
        await asyncio.wait_for(running, 30)

    with batching_server(12) as url:
        settings = Settings(
            database_url=SecretStr(world.database.url("worker")),
            object_store_url=f"file://{tmp_path}",
            engine=EngineKind.OPENAI,
            engine_url=url,
            model_revision="r1",
            worker_grace=0.2,
        )
        app = App(settings, name="worker")
        try:
            asyncio.run(main(url, app))
        finally:
            app.close(5)
        done = json.loads(fetch(f"{url}/timeline"))[-1][-1]
    assert world.value("SELECT count(*) FROM claims WHERE batch_id = :b", b=batch) == 0
    assert 0 < world.value("SELECT count(*) FROM results WHERE batch_id = :b", b=batch) <= done


@pytest.mark.parametrize("pool", Pool)
def test_spot_leaves_places_of_a_shared_engine_free_and_dedicated_does_not(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    world.batch(5000, pool=pool.value)
    input_store(world, 5000, store=ObstoreObjects(f"file://{tmp_path}"))
    monkeypatch.setattr(build, "ConcurrencyTuner", partial(ConcurrencyTuner, tick=0.1))

    async def main(url: str, app: App) -> list[EngineLoad]:
        worker = app.build_worker(pool)
        running = asyncio.create_task(worker.run())
        loads: list[EngineLoad] = []
        while sum(load.running >= 20 for load in loads) < 20:
            assert len(loads) < 400, loads[-1]
            load = read_load(await asyncio.to_thread(fetch, f"{url}/metrics"))
            assert load is not None
            loads.append(load)
            await asyncio.sleep(0.05)
        worker.stop()
        await asyncio.wait_for(running, 30)
        return loads

    with batching_server(24) as url:
        settings = Settings(
            database_url=SecretStr(world.database.url("worker")),
            object_store_url=f"file://{tmp_path}",
            engine=EngineKind.OPENAI,
            engine_url=url,
            engine_share=EngineShare.SPARE,
            worker_max_concurrency=128,
            worker_grace=0.2,
        )
        app = App(settings, name="worker")
        try:
            waiting = sorted(load.waiting for load in asyncio.run(main(url, app))[-20:])
        finally:
            app.close(5)
    assert (waiting[10] == 0) is (pool is Pool.SPOT)

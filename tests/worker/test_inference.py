"""A worker on the real queue, with a scripted engine and injected faults."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.core.durations import ExponentialBackoff
from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.pools import Pool
from lowtide.engines.catalog import ModelCatalog
from lowtide.engines.outcomes import Answered, Interrupted, RetryPolicy
from lowtide.objects.store import ObstoreObjects
from lowtide.telemetry.tracing import ScopedSpan, Untraced
from lowtide.worker import inputs, lease, results
from lowtide.worker.results import FlushRules
from lowtide.worker.spans import SetSpans
from tests.fleets.single import SINGLE
from tests.worker.workers import Bench, ScriptedEngine, good, input_store, until, work_during

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from lowtide.engines.model import EngineRequest
    from lowtide.engines.outcomes import Outcome
    from lowtide.telemetry.tracing import Span
    from tests.worlds import World


@pytest.fixture(autouse=True)
def _short_retry_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(results, "_RETRY_SECONDS", 0.01)


def _work(bench: Bench, during: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    work_during(bench, partial(during, bench))


def _finished(count: int) -> Callable[[Bench], Coroutine[Any, Any, None]]:
    async def wait(bench: Bench) -> None:
        await until(lambda: bench.finished() == count)

    return wait


def test_worker_runs_all_requests_and_publishes_drained_events(world: World) -> None:
    first, second = world.batch(30), world.batch(30)
    bench = Bench.of(world, ScriptedEngine(), lines=30)
    _work(bench, _finished(60))
    assert sorted(request.body for request in bench.engine.requests) == sorted(
        b'{"n":%d}' % n for n in range(1, 31) for _ in range(2)
    )
    assert {(r.endpoint, r.attempt, r.spot) for r in bench.engine.requests} == {
        ("/v1/embeddings", 1, True)
    }
    assert len({request.key for request in bench.engine.requests}) == 60
    assert (bench.meter.claimed, bench.meter.completed, bench.meter.failed) == (60, 60, 0)
    assert {event.subject for event in bench.sink.sent} == {
        f"batch_{b.hex}" for b in (first, second)
    }
    assert [world.drained(batch) for batch in (first, second)] == [0, 0]  # accepted, so deleted
    assert world.rows("SELECT 1 FROM workers") == []
    assert bench.engine.closed


def test_worker_records_models_of_its_engine(world: World) -> None:
    bench = Bench.of(world, ScriptedEngine(), lines=1)
    models = ModelCatalog(world.api)

    async def recorded(_: Bench) -> None:
        await until(lambda: models.known(DEFAULT_TENANT, SINGLE))

    _work(bench, recorded)
    assert [model.name for model in models.known(DEFAULT_TENANT, SINGLE)] == ["model-a", "model-b"]


def test_worker_claims_up_to_concurrency_and_prefetch(world: World) -> None:
    world.batch(100)
    bench = Bench.of(world, ScriptedEngine(hold=True), lines=100, concurrency=8, prefetch=4)

    async def during(bench: Bench) -> None:
        await until(lambda: bench.engine.running == 12)
        bench.engine.release()
        await until(lambda: bench.finished() == 100)

    _work(bench, during)
    assert bench.engine.peak == 12


def test_worker_claims_again_until_queue_is_empty(world: World) -> None:
    world.batch(40)
    engine = ScriptedEngine()
    running: list[int] = []

    def answer(request: EngineRequest) -> Outcome:
        running.append(engine.running)
        return good(request)

    engine.answer = answer
    bench = Bench.of(world, engine, lines=40, concurrency=8, prefetch=8)
    _work(bench, _finished(40))
    assert bench.queue.calls["claim"] >= 3


def test_idle_worker_backs_off_and_work_resets_backoff(world: World) -> None:
    delays: list[float] = []

    class Watched(ExponentialBackoff):
        def next_delay(self) -> float:
            delays.append(super().next_delay())
            return delays[-1]

    bench = Bench.of(world, ScriptedEngine(), lines=0, backoff=Watched(0.001, 0.004))

    async def during(bench: Bench) -> None:
        await until(lambda: len(delays) >= 5)
        world.batch(1)
        input_store(world, 1, store=bench.store)
        before = len(delays)
        await until(lambda: bench.finished() == 1)
        await until(lambda: len(delays) > before + 1)

    _work(bench, during)
    assert delays[:5] == [0.001, 0.002, 0.004, 0.004, 0.004]
    assert delays.count(0.001) >= 2
    assert len(bench.meter.idled) >= 5


@pytest.mark.parametrize("moment", ["while it waits", "while it claims"])
def test_wake_ends_idle_wait(world: World, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    bench = Bench.of(world, ScriptedEngine(), lines=0, backoff=ExponentialBackoff(600, 600))
    claim = bench.queue._inner.claim
    proceed = threading.Event()
    claiming = threading.Event()

    def claim_slowly(*arguments: Any) -> Any:
        claims = claim(*arguments)
        claiming.set()
        assert proceed.wait(10)
        return claims

    monkeypatch.setattr(bench.queue._inner, "claim", claim_slowly)
    waiting = asyncio.Event()
    pause = bench.worker._pause

    async def paused(*arguments: Any) -> None:
        waiting.set()
        await pause(*arguments)

    monkeypatch.setattr(bench.worker, "_pause", paused)

    async def during(bench: Bench) -> None:
        await until(claiming.is_set)
        if moment == "while it waits":
            proceed.set()
            await waiting.wait()
        world.batch(2)
        input_store(world, 2, store=bench.store)
        # From another thread, as the function's handler does.
        caller = threading.Thread(target=bench.worker.wake)
        caller.start()
        caller.join()
        await asyncio.sleep(0)
        proceed.set()
        await until(lambda: bench.finished() == 2)

    _work(bench, during)


def test_stop_ends_idle_wait(world: World) -> None:
    bench = Bench.of(world, ScriptedEngine(), lines=0, backoff=ExponentialBackoff(600, 600))

    async def during(bench: Bench) -> None:
        await until(lambda: bench.queue.calls.get("claim") == 1)

    _work(bench, during)
    assert world.rows("SELECT 1 FROM workers") == []


def test_worker_stopped_before_start_does_nothing(world: World) -> None:
    world.batch(1)
    bench = Bench.of(world, ScriptedEngine(), lines=1)
    bench.worker.stop()
    asyncio.run(asyncio.wait_for(bench.worker.run(), 10))
    assert bench.engine.requests == []
    assert world.rows("SELECT 1 FROM workers") == []


def test_stop_lets_running_requests_finish(world: World) -> None:
    batch = world.batch(30)
    bench = Bench.of(world, ScriptedEngine(hold=True), lines=30)

    async def during(bench: Bench) -> None:
        await until(lambda: bench.engine.running == 12)
        bench.worker.stop()
        bench.engine.release()

    _work(bench, during)
    assert len(world.lines("results", batch)) == 12
    assert len(world.lines("queue", batch)) == 18
    assert world.value("SELECT max(attempts) + max(interruptions) FROM queue") == 0


@pytest.mark.parametrize("pool", list(Pool))
def test_unfinished_requests_are_released_after_grace_period(world: World, pool: Pool) -> None:
    batch = world.batch(12, pool=pool.value)
    bench = Bench.of(world, ScriptedEngine(hold=True), lines=12, grace=0.05, pool=pool)

    async def during(bench: Bench) -> None:
        await until(lambda: bench.engine.running == 12)

    _work(bench, during)
    assert world.lines("queue", batch) == list(range(1, 13))
    row = world.row(batch)
    assert (row.interrupted, row.retried) == (12 if pool is Pool.SPOT else 0, 0)
    assert world.value("SELECT max(attempts) FROM queue") == 0
    assert bench.engine.running == 0


def test_requests_with_results_being_written_are_not_released(world: World) -> None:
    batch = world.batch(5)
    bench = Bench.of(world, ScriptedEngine(), lines=5)
    proceed = bench.queue.hold("settle")

    async def during(bench: Bench) -> None:
        await until(bench.queue.reached["settle"].is_set)
        bench.worker.stop()
        # Long enough for a worker that does not wait for its last write to stop.
        for _ in range(50):
            await asyncio.sleep(0)
        threading.Timer(0.3, proceed.set).start()

    _work(bench, during)
    assert world.lines("results", batch) == [1, 2, 3, 4, 5]
    assert world.lines("queue", batch) == []


def test_failures_are_retried_and_interruptions_rerun(world: World) -> None:
    batch = world.batch(6)

    def answer(request: EngineRequest) -> Outcome:
        number = int(request.body[5:-1])
        if number == 1 and request.attempt < 3:
            return Answered(500, b"{}")
        if number == 2 and request.interruptions < 2:
            return Interrupted("Simulated spot interruption")
        if number == 3:
            return Answered(501, b"{}")
        return Answered(400, b"{}") if number == 4 else good(request)

    bench = Bench.of(world, ScriptedEngine(answer), lines=6)
    _work(bench, _finished(6))
    rows = world.rows("SELECT * FROM results ORDER BY line")
    assert [
        (r.line, r.status_code, r.attempts, r.interruptions, r.dead_lettered) for r in rows
    ] == [
        (1, 200, 3, 0, False),
        (2, 200, 1, 2, False),
        (3, 501, 3, 0, True),
        (4, 400, 1, 0, False),
        (5, 200, 1, 0, False),
        (6, 200, 1, 0, False),
    ]
    assert world.drained(batch) == 0
    assert (bench.meter.completed, bench.meter.claimed) == (4, 4 + 2 + 6)


def test_engine_exception_releases_its_requests(world: World) -> None:
    world.batch(3)
    faults = iter([RuntimeError("bug"), None])

    def answer(request: EngineRequest) -> Outcome:
        if request.body == b'{"n":2}' and (fault := next(faults, None)):
            raise fault
        return good(request)

    bench = Bench.of(world, ScriptedEngine(answer), lines=3)

    async def during(bench: Bench) -> None:
        await until(lambda: bench.finished() == 1)
        await until(lambda: world.value("SELECT count(*) FROM queue") == 2)
        world.run("UPDATE queued_runs SET available_at = now()")
        bench.worker.wake()
        await until(lambda: bench.finished() == 3)

    _work(bench, during)
    assert world.value("SELECT max(attempts) FROM results") == 1


class _BrokenTracer(Untraced):
    """Port Tracer: raises on the first call of one of its methods."""

    def __init__(self, call: str) -> None:
        self._calls = [call]

    def start(self, name: str, **options: Any) -> ScopedSpan:
        self._fail("start")
        return super().start(name, **options)

    @contextmanager
    def inside(self, span: Span) -> Iterator[None]:
        self._fail("inside")
        with super().inside(span):
            yield

    def _fail(self, call: str) -> None:
        if call in self._calls:
            self._calls.remove(call)
            raise RuntimeError("bug")


@pytest.mark.parametrize("call", ["start", "inside"])
def test_tracing_error_leaves_no_request_claimed(
    world: World, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    batch = world.batch(3)
    _work(Bench.of(world, ScriptedEngine(), lines=3, tracer=_BrokenTracer(call)), _finished(3))
    assert world.lines("claims", batch) == []
    assert world.value("SELECT max(attempts) FROM results") == 1
    assert "tracing.failed" in caplog.messages


def test_span_error_loses_no_result(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(SetSpans, "add", broken)
    batch = world.batch(1)
    _work(Bench.of(world, ScriptedEngine(), lines=1), _finished(1))
    assert world.lines("claims", batch) == []


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"not JSON", id="not JSON"),
        pytest.param(b'{"body":', id="cut off"),
        pytest.param(b"{}", id="no body"),
        pytest.param(b'{"body":"\xff\xfe"', id="not UTF-8"),
        pytest.param(b"[" * 90, id="nested"),
    ],
)
def test_corrupt_input_fails_requests_without_attempt(world: World, content: bytes) -> None:
    batch = world.batch(3)
    store = input_store(world, 3, content)
    bench = Bench.of(world, ScriptedEngine(), lines=3, store=store)
    _work(bench, _finished(3))
    rows = world.rows("SELECT * FROM results")
    assert {(row.error_code, row.succeeded, row.attempts) for row in rows} == {
        ("input_corrupt", False, 0)
    }
    assert world.lines("queue", batch) == []
    assert bench.engine.requests == []


def test_lone_surrogate_fails_only_its_request(world: World) -> None:
    batch = world.batch(3)
    store = input_store(world, 3, odd={2: rb'{"body":{"input":"half \ud83d"}}'})
    bench = Bench.of(world, ScriptedEngine(), lines=3, store=store)
    _work(bench, _finished(3))
    rows = world.rows("SELECT * FROM results ORDER BY line")
    assert [(row.succeeded, row.error_code) for row in rows] == [
        (True, None), (False, "invalid_unicode"), (True, None),
    ]  # fmt: skip
    assert rows[1].error_message.startswith("Line 2 cannot be sent")
    assert len(bench.engine.requests) == 2
    assert (world.row(batch).status, world.rows("SELECT 1 FROM dead_letters")) == ("finalizing", [])


def test_missing_input_fails_its_requests(world: World) -> None:
    batch = world.batch(3)
    bench = Bench.of(world, ScriptedEngine(), lines=3, store=ObstoreObjects("memory://"))
    _work(bench, _finished(3))
    rows = world.rows("SELECT * FROM results")
    assert {(row.error_code, row.succeeded, row.attempts) for row in rows} == {
        ("input_missing", False, 0)
    }
    assert world.row(batch).status == "finalizing"


def test_unreadable_store_delays_requests_without_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.batch(3)
    bench = Bench.of(world, ScriptedEngine(), lines=3)
    failing = iter([True])
    real = bench.store.fetch_ranges

    async def fetch_ranges(*arguments: Any) -> Any:
        if next(failing, False):
            raise Unavailable("The store is away")
        return await real(*arguments)

    monkeypatch.setattr(bench.store, "fetch_ranges", fetch_ranges)
    monkeypatch.setattr(inputs, "_FIRST_DELAY", 0.05)
    monkeypatch.setattr(inputs, "_SPREAD", 0.05)

    _work(bench, _finished(3))
    assert {row.attempts for row in world.rows("SELECT attempts FROM results")} == {1}
    assert next(failing, None) is None


def test_worker_replaces_lost_lease_and_reruns_requests(world: World) -> None:
    batch = world.batch(12)
    bench = Bench.of(world, ScriptedEngine(hold=True), lines=12, lease=0.6)

    async def during(bench: Bench) -> None:
        await until(lambda: bench.engine.running == 12)
        first = bench.keeper.lease
        # The scheduler does so with a worker that stalled.
        world.run("UPDATE workers SET expires_at = now() - interval '1 s'")
        world.sweep()
        await until(lambda: bench.keeper.lease not in (None, first))
        bench.engine.release()
        await until(lambda: bench.finished() == 12)

    _work(bench, during)
    assert world.row(batch).tallied_completed == 12
    assert world.row(batch).interrupted == 12
    assert len(bench.engine.requests) == 24
    assert world.rows("SELECT 1 FROM workers") == []


@pytest.mark.parametrize("call", ["open_lease", "claim", "settle", "renew", "close_lease"])
def test_short_database_outage_loses_and_repeats_nothing(world: World, call: str) -> None:
    batch = world.batch(20)
    bench = Bench.of(world, ScriptedEngine(), lines=20, lease=0.3)
    bench.queue.fail(call, 3 if call != "renew" else 1)

    async def during(bench: Bench) -> None:
        await until(lambda: bench.finished() == 20)
        if call == "renew":
            await until(lambda: bench.queue.calls.get("renew", 0) >= 2)

    _work(bench, during)
    assert world.row(batch).tallied_completed == 20
    assert len(bench.engine.requests) == 20
    assert bench.queue.calls[call] >= 1


def test_settlement_with_lost_response_counts_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = world.batch(4)
    bench = Bench.of(world, ScriptedEngine(), lines=4)
    real = bench.queue._inner.settle
    lost = iter([True])

    def settle(*arguments: Any) -> Any:
        settled = real(*arguments)
        if next(lost, False):
            raise Unavailable("The connection broke after the commit")
        return settled

    monkeypatch.setattr(bench.queue._inner, "settle", settle)
    _work(bench, _finished(4))
    assert world.row(batch).tallied_completed == 4
    assert world.row(batch).status == "finalizing"


@pytest.mark.parametrize("call", ["settle", "renew", "claim"])
def test_unexpected_error_ends_worker(world: World, call: str) -> None:
    world.batch(5)
    bench = Bench.of(world, ScriptedEngine(), lines=5, lease=0.3)
    bench.queue.fail(call, 1000, RuntimeError("a bug"))
    with pytest.raises((RuntimeError, ExceptionGroup)):
        asyncio.run(asyncio.wait_for(bench.worker.run(), 10))
    assert bench.engine.closed
    assert world.rows("SELECT 1 FROM workers") == []
    assert world.value("SELECT count(*) FROM claims") == 0


def test_stop_does_not_wait_for_unavailable_database(world: World) -> None:
    bench = Bench.of(world, ScriptedEngine(), lines=0)
    bench.queue.fail("open_lease", 10_000)

    async def during(bench: Bench) -> None:
        await until(lambda: bench.queue.calls.get("open_lease", 0) > 2)

    _work(bench, during)


def test_worker_stops_claiming_while_results_cannot_be_written(world: World) -> None:
    world.batch(300)
    bench = Bench.of(
        world, ScriptedEngine(), lines=300, flush=FlushRules(2, 0.001), policy=RetryPolicy()
    )
    bench.queue.fail("settle", 100_000)

    async def during(bench: Bench) -> None:
        await until(lambda: bench.worker._writer.is_congested)
        claimed = bench.meter.claimed
        assert claimed <= 20 + 12
        await until(lambda: bench.queue.calls["settle"] > 5)
        assert bench.meter.claimed <= 20 + 12
        bench.queue.failures.clear()
        await until(lambda: bench.finished() == 300)

    _work(bench, during)

"""Workers whose engine fails, rejects or is busy: attempts, breaker and recovery."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import Unavailable
from lowtide.engines import breaker
from lowtide.engines.breaker import BreakerState, Probed
from lowtide.engines.outcomes import Answered, RetryPolicy, Unanswered
from lowtide.worker import engine_watch
from tests.worker.workers import Bench, ScriptedEngine, good, input_store, until, work_during

if TYPE_CHECKING:
    from lowtide.engines.model import EngineRequest
    from lowtide.engines.outcomes import Outcome
    from tests.worlds import World

REFUSED = Unanswered("connection_error", "The engine could not be reached: refused")
UNREACHABLE = Probed(well=False, reason="GET /health: refused")
BROKEN = Answered(500, b'{"error":{"message":"CUDA error"}}')
LACKS = Answered(404, b"{}", lacks_model=True)
FAST = RetryPolicy(3, 0.001, 0.002)


@pytest.fixture(autouse=True)
def _short_probe_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PROBE", 0.01)
    monkeypatch.setattr(breaker, "LAST_PROBE", 0.05)
    monkeypatch.setattr(engine_watch, "RECENT", 0.0)


def _engine_state(world: World) -> tuple[str, str] | None:
    rows = world.rows("SELECT engine_state, engine_reason FROM workers")
    return (rows[0].engine_state, rows[0].engine_reason) if rows else None


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        pytest.param(REFUSED, "could not be reached", id="refused"),
        pytest.param(BROKEN, "HTTP 500", id="500 to everything"),
        pytest.param(Answered(503, b"{}"), "HTTP 503", id="503"),
        pytest.param(Answered(401, b"{}"), "LOWTIDE_ENGINE_API_KEY", id="wrong key"),
        pytest.param(LACKS, "does not serve", id="missing model"),
        pytest.param(Unanswered("timeout", "no answer"), "no answer", id="timeouts"),
    ],
)
def test_engine_outage_counts_no_attempt_and_worker_recovers(
    world: World, caplog: pytest.LogCaptureFixture, outcome: Outcome, reason: str
) -> None:
    batch = world.batch(100)
    engine = ScriptedEngine()
    bench = Bench.of(world, engine, lines=100, policy=FAST)

    async def during() -> None:
        await until(lambda: bench.watch.is_shut_off is False)
        engine.answer, engine.probed = (lambda _: outcome), UNREACHABLE
        await until(lambda: bench.watch.is_shut_off)
        # It has released everything, and claims nothing more while it probes.
        await until(lambda: not world.lines("claims", batch))
        sent, probes = len(engine.requests), len(engine.probes)
        await until(lambda: len(engine.probes) >= probes + 5)
        assert len(engine.requests) == sent <= 24
        assert world.lines("claims", batch) == []
        await until(lambda: (_engine_state(world) or ("",))[0] == "open")
        with pytest.raises(Unavailable, match="engine_unavailable"):
            bench.watch.check()
        engine.answer, engine.probed = good, Probed(well=True, answers=True)
        await until(lambda: bench.finished() == 100)
        bench.watch.check()
        await until(lambda: _engine_state(world) == ("closed", ""))

    work_during(bench, during)
    opened = [
        record.__dict__["reason"]
        for record in caplog.records
        if record.message == "engine.breaker" and record.__dict__["state"] == "open"
    ]
    assert reason in opened[0]
    assert world.value("SELECT max(attempts) FROM results") == 1
    assert world.row(batch).retried == world.row(batch).interrupted == 0
    assert set(bench.meter.engine_states) >= {BreakerState.OPEN, BreakerState.CLOSED}
    assert len(bench.meter.engine_faults) >= 3


def test_open_breaker_probes_with_one_request(world: World) -> None:
    batch = world.batch(40)
    engine = ScriptedEngine(lambda _: REFUSED)
    engine.probed = Probed(well=True)  # healthy, but unable to run requests
    bench = Bench.of(world, engine, lines=40, policy=FAST)

    async def during() -> None:
        await until(lambda: BreakerState.OPEN in bench.meter.engine_states)
        await until(lambda: not world.lines("claims", batch))
        sent, probes = len(engine.requests), len(engine.probes)
        engine.peak = 0
        await until(lambda: len(engine.probes) >= probes + 3)
        assert engine.peak == 1
        assert len(engine.requests) - sent <= len(engine.probes) - probes + 1
        engine.answer = good
        await until(lambda: bench.finished() == 40)

    work_during(bench, during)
    assert world.value("SELECT max(attempts) FROM results") == 1


def test_engine_faults_do_not_inflate_utilization(world: World) -> None:
    world.batch(60)
    answers = count()
    # Two faults, then a success: never a streak.
    engine = ScriptedEngine(
        lambda request: Answered(502, b"{}") if next(answers) % 3 else good(request)
    )
    bench = Bench.of(world, engine, lines=60, policy=FAST, concurrency=2, prefetch=10)

    async def during() -> None:
        await until(lambda: bench.finished() == 60)
        assert len(engine.requests) > 120
        assert 0 < bench.keeper.utilization.total().lines <= 60

    work_during(bench, during)


def test_worker_waits_for_engine_at_start(world: World) -> None:
    world.batch(3)
    engine = ScriptedEngine()
    engine.probed = UNREACHABLE
    bench = Bench.of(world, engine, lines=3, policy=FAST, patience=0.2)

    async def during() -> None:
        await until(lambda: len(engine.probes) >= 2)
        await until(lambda: (_engine_state(world) or ("",))[0] == "starting")
        assert "claim" not in bench.queue.calls
        await until(lambda: (_engine_state(world) or ("",))[0] == "open")
        engine.probed = Probed(well=True)
        await until(lambda: bench.finished() == 3)

    work_during(bench, during)


def _poison(request: EngineRequest) -> Outcome:
    return BROKEN if request.body == b'{"n":2}' else good(request)


def test_poison_request_is_dead_lettered_and_harms_no_other(world: World) -> None:
    world.batch(20)
    bench = Bench.of(world, ScriptedEngine(_poison), lines=20, policy=FAST)

    async def during() -> None:
        await until(lambda: bench.finished() == 20)

    work_during(bench, during)
    rows = world.rows("SELECT * FROM results WHERE NOT succeeded")
    assert [(row.line, row.attempts, row.dead_lettered) for row in rows] == [(2, 3, True)]
    assert world.value("SELECT max(attempts) FROM results WHERE succeeded") == 1


@pytest.mark.parametrize(
    "probed",
    [
        pytest.param(Probed(well=True), id="healthy"),
        pytest.param(Probed(well=True, answers=True), id="answers a minimal request"),
    ],
)
@pytest.mark.parametrize("requests", [1, 5])
def test_lone_poison_is_dead_lettered_while_probes_succeed(
    world: World, requests: int, probed: Probed
) -> None:
    world.batch(requests)
    engine = ScriptedEngine(lambda _: BROKEN)
    engine.probed = probed
    bench = Bench.of(world, engine, lines=requests, policy=FAST)

    async def during() -> None:
        await until(lambda: bench.finished() == requests)

    work_during(bench, during)
    assert world.value("SELECT count(*) FROM dead_letters") == requests
    assert world.value("SELECT min(attempts) FROM results") == 3


def test_lone_poison_waits_while_probes_fail(world: World) -> None:
    world.batch(1)
    engine = ScriptedEngine(lambda _: BROKEN, hold=True)
    bench = Bench.of(world, engine, lines=1, policy=FAST)

    async def during() -> None:
        await until(lambda: engine.running)
        engine.probed = UNREACHABLE
        engine.release()
        await until(lambda: bench.watch.is_shut_off)
        probes = len(engine.probes)
        await until(lambda: len(engine.probes) > probes + 3)
        assert bench.finished() == 0

    work_during(bench, during)
    assert world.value("SELECT max(attempts) FROM queue") == 0


def test_503_for_lone_request_causes_no_hot_loop(world: World) -> None:
    world.batch(1)
    bench = Bench.of(world, ScriptedEngine(lambda _: Answered(503, b"{}")), lines=1, policy=FAST)

    async def during() -> None:
        await until(lambda: len(bench.engine.probes) >= 10)

    work_during(bench, during)
    # The engine answers its probes, so that its breaker closes again and again.
    assert len(bench.engine.requests) <= breaker.STREAK * len(bench.engine.probes)
    assert world.value("SELECT max(attempts) FROM queue") == 0


BUSY = {
    "429": Answered(429, b"{}"),
    "429 with Retry-After": Answered(429, b"{}", retry_after=0.02),
    "503 with Retry-After": Answered(503, b"{}", retry_after=0.02),
    "529": Answered(529, b"{}"),
}


@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY.keys())
def test_back_pressure_lowers_in_flight_limit_and_counts_no_attempt(
    world: World, busy: Outcome
) -> None:
    batch = world.batch(60)
    busy_answers = iter(range(6))
    bench = Bench.of(
        world,
        ScriptedEngine(lambda request: good(request) if next(busy_answers, None) is None else busy),
        lines=60,
        policy=FAST,
    )

    async def during() -> None:
        await until(lambda: bench.finished() == 60)

    work_during(bench, during)
    assert world.value("SELECT max(attempts) FROM results") == 1
    assert world.row(batch).retried == 0
    limits = bench.engine.limits
    assert limits[0] == 0
    assert limits[1] < 8
    assert limits[-1] == 8
    assert bench.meter.engine_faults == []


def test_worker_of_busy_engine_claims_less(world: World) -> None:
    batch = world.batch(60)
    engine = ScriptedEngine(lambda _: Answered(429, b"{}", retry_after=0.02))
    bench = Bench.of(world, engine, lines=60, policy=RetryPolicy(3, 0.001, 0.02))
    claimed: list[int] = []

    async def during() -> None:
        await until(lambda: engine.limits.count(1) >= 2)
        for _ in range(20):
            claimed.append(len(world.lines("claims", batch)))
            await asyncio.sleep(0)
        engine.answer = good
        await until(lambda: bench.finished() == 60)

    work_during(bench, during)
    assert max(claimed) <= 4


def test_other_models_run_while_one_is_missing(world: World) -> None:
    missing, served = world.batch(30), world.batch(30)
    world.run("UPDATE batches SET model = 'gone' WHERE id = :id", id=missing)
    store = input_store(world, 30)
    key = world.value("SELECT input_key FROM batches WHERE id = :id", id=missing)
    with store.open_writer(str(key)) as writer:
        writer.write(b" " * 100)
        for number in range(1, 31):
            line = b'{"body":{"model":"gone","n":%d}}' % number
            writer.write(line.ljust(90) + b" " * 10)
    engine = ScriptedEngine(lambda request: LACKS if b"gone" in request.body else good(request))
    engine.probed = Probed(well=True, lacks_model=True)
    bench = Bench.of(world, engine, lines=30, store=store, policy=FAST)

    async def during() -> None:
        await until(lambda: bench.finished() == 30)
        # With nothing else to run, it tries the model with at most one request per probe.
        await until(lambda: (_engine_state(world) or ("",))[0] == "open")
        sent, probes = len(engine.requests), len(engine.probes)
        await until(lambda: len(engine.probes) >= probes + 4)
        assert len(engine.requests) - sent <= len(engine.probes) - probes + 1
        engine.answer = good
        await until(lambda: bench.finished() == 60)

    work_during(bench, during)
    assert world.lines("results", served) == list(range(1, 31))
    assert world.value("SELECT max(attempts) FROM results") == 1

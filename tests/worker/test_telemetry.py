"""A worker exports what its engine reports, and its lease carries it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from lowtide.app import App
from lowtide.core.pools import Pool, Prices
from lowtide.engines.model import NoopEngine
from lowtide.engines.outcomes import Answered, Unanswered, Usage
from lowtide.engines.simulated import SimulatedEngine
from lowtide.engines.telemetry import EngineTelemetry
from lowtide.engines.upstream import UpstreamEngine
from lowtide.objects.store import ObstoreObjects
from lowtide.queue.rates import WorkerTelemetry
from lowtide.settings import EngineKind, Settings
from lowtide.worker import build
from lowtide.worker.engine_watch import EngineWatch
from lowtide.worker.metrics import WorkerMetrics
from lowtide.worker.telemetry import TelemetryReader, TokenRates
from tests.engines.reported import LLAMA_CPP, sglang, vllm
from tests.engines.served import VLLM, chat, serving
from tests.worker.workers import FlakyQueue, Meter, ScriptedEngine, input_store, lease_keeper, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowtide.engines.model import Engine
    from tests.worlds import World

FLEET = "l4-small"
LABELS = {"fleet": FLEET, "pool": "spot"}


@pytest.fixture
def meter() -> Iterator[WorkerMetrics]:
    made = WorkerMetrics(Pool.SPOT, Prices(1.0, 3.0, "USD"), lambda _: None, fleet=FLEET)
    yield made
    made.engine_reports(None)


def exported() -> dict[str, float]:
    """Return the exported metrics of the engine, and its histograms' buckets by their bounds."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(REGISTRY).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            bound = labels.pop("le", None)
            if sample.name.startswith("engine_") and labels == LABELS:
                found[f"{sample.name} {bound}" if bound else sample.name] = sample.value
    return {name: value for name, value in found.items() if not name.endswith("_created")}


TOKENS = {"engine_prompt_tokens_total", "engine_output_tokens_total"}


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def reader_of(
    world: World, engine: Engine, meter: WorkerMetrics, timer: Clock | None = None
) -> TelemetryReader:
    watch = EngineWatch(engine, meter, concurrency=48, cap=1.0, patience=1.0, rng=Random(0))  # noqa: S311
    keeper = lease_keeper(world, FlakyQueue(world.queue))
    return TelemetryReader(engine, watch, meter, keeper, timer=timer or Clock())


async def read_from(world: World, url: str, meter: WorkerMetrics) -> None:
    engine = UpstreamEngine(url)
    try:
        await reader_of(world, engine, meter).read()
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("metrics", "values"),
    [
        pytest.param(
            vllm(),
            {
                "engine_requests_running": 64,
                "engine_requests_waiting": 3,
                "engine_kv_cache_usage_ratio": 0.25,
                "engine_prefix_cache_queries_total": 8000,
                "engine_prefix_cache_hits_total": 2000,
                "engine_time_to_first_token_seconds_sum": 12.65,
                "engine_time_to_first_token_seconds_count": 4,
                "engine_time_to_first_token_seconds_bucket 0.5": 3,
                "engine_time_to_first_token_seconds_bucket +Inf": 4,
                "engine_time_per_output_token_seconds_bucket 0.025": 3,
            },
            id="vLLM",
        ),
        pytest.param(
            sglang(),
            {
                "engine_requests_running": 16,
                "engine_requests_waiting": 1,
                "engine_kv_cache_usage_ratio": 0.83,
                "engine_prefix_cache_queries_total": 1000,
                "engine_prefix_cache_hits_total": 200,
                "engine_time_to_first_token_seconds_bucket 0.4": 2,
                "engine_time_per_output_token_seconds_bucket 0.02": 2,
            },
            id="SGLang",
        ),
        pytest.param(
            LLAMA_CPP,
            {
                "engine_requests_running": 4,
                "engine_requests_waiting": 28,
                "engine_time_per_output_token_seconds_sum": 90.5,
                "engine_time_per_output_token_seconds_count": 3000,
            },
            id="llama.cpp",
        ),
    ],
)
def test_reports_of_engines_are_exported(
    world: World, meter: WorkerMetrics, metrics: bytes, values: dict[str, float]
) -> None:
    with serving({**VLLM, "/metrics": metrics.decode()}) as url:
        asyncio.run(read_from(world, url, meter))
    found = exported()
    assert {name: found.get(name) for name in values} == values
    if metrics == LLAMA_CPP:
        # It has no KV cache, prefix cache or time to the first token, and no buckets.
        assert found.keys() - TOKENS == values.keys()


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"detail": "Not Found"}),
        "<html>metrics</html>",
        "",
        (500, "vllm:kv_cache_usage_perc 1"),
    ],
    ids=["none", "page", "empty", "error"],
)
def test_nothing_is_exported_of_an_engine_without_metrics(
    world: World, meter: WorkerMetrics, answer: object
) -> None:
    with serving({**VLLM, "/metrics": answer}) as url:
        asyncio.run(read_from(world, url, meter))
    assert exported().keys() <= TOKENS


def test_unreachable_engine_has_no_telemetry(world: World, meter: WorkerMetrics) -> None:
    with serving(VLLM) as url:
        pass
    asyncio.run(read_from(world, url, meter))
    assert exported().keys() <= TOKENS


@pytest.mark.parametrize("engine", [NoopEngine(), SimulatedEngine()], ids=["noop", "simulated"])
def test_other_engines_have_no_telemetry(engine: Engine) -> None:
    assert asyncio.run(engine.telemetry()) is None


def test_tokens_of_answers_are_counted(meter: WorkerMetrics) -> None:
    before = exported()
    meter.ran(
        [
            Answered(200, b"{}", usage=Usage(100, 20)),
            Answered(200, b"{}", usage=Usage(1, 2)),
            Answered(500, b"{}"),
            Unanswered("timeout", "late"),
        ]
    )
    after = exported()
    assert after["engine_prompt_tokens_total"] - before["engine_prompt_tokens_total"] == 101
    assert after["engine_output_tokens_total"] - before["engine_output_tokens_total"] == 22
    assert meter.tokens == (101, 22)


def test_concurrency_of_the_watch_is_exported(meter: WorkerMetrics) -> None:
    def value() -> float | None:
        return REGISTRY.get_sample_value("worker_concurrency", LABELS)

    engine = ScriptedEngine()
    watch = EngineWatch(engine, meter, concurrency=32, cap=1.0, patience=1.0, rng=Random(0))  # noqa: S311
    assert value() == 32
    watch.allow(211)
    assert value() == 211


REPORT = EngineTelemetry(running=7, waiting=2, kv_cache=0.5)


def test_report_is_dropped_once_it_is_old(world: World) -> None:
    engine, meter, clock = ScriptedEngine(), Meter(), Clock()
    reader = reader_of(world, engine, meter, clock)

    async def read(at: float, reports: EngineTelemetry | None) -> EngineTelemetry | None:
        clock.now, engine.reports = at, reports
        await reader.read()
        return meter.reports[-1]

    async def run() -> None:
        assert await read(5, REPORT) == REPORT
        assert await read(10, None) == REPORT
        assert await read(19.9, None) == REPORT
        assert await read(20, None) is None
        # From now on it is asked every 30 s.
        assert await read(49.9, REPORT) is None
        assert await read(50, REPORT) == REPORT
        assert await read(55, replace(REPORT, running=8)) == replace(REPORT, running=8)

    asyncio.run(run())


def test_token_rates_are_the_mean_of_a_minute() -> None:
    rates = TokenRates(0.0)
    assert rates.add(0.0, 0, 0) == (0.0, 0.0)
    assert rates.add(5.0, 100, 50) == (20.0, 10.0)
    for at in range(10, 61, 5):
        rates.add(float(at), 100, 50)
    # The start is a minute ago, and then the first tokens are.
    assert rates.add(65.0, 100, 50) == (0.0, 0.0)
    assert rates.add(70.0, 700, 50) == (10.0, 0.0)


def test_lease_carries_the_last_telemetry(world: World) -> None:
    keeper = lease_keeper(world, FlakyQueue(world.queue), duration=0.03)
    columns = "input_token_rate, output_token_rate, concurrency, engine_running, engine_waiting, engine_kv_cache"

    def row() -> tuple[object, ...]:
        (found,) = world.rows(f"SELECT {columns} FROM workers")  # noqa: S608
        return tuple(found)

    async def run() -> None:
        await keeper.open()
        assert row() == (None,) * 6
        keeping = asyncio.create_task(keeper.keep(lambda: None))
        keeper.telemetry = WorkerTelemetry(120.5, 30.0, 64, REPORT)
        await until(lambda: row() == (120.5, 30.0, 64, 7, 2, 0.5))
        keeper.telemetry = WorkerTelemetry(0.0, 0.0, 64, EngineTelemetry(kv_cache=0.0))
        await until(lambda: row() == (0.0, 0.0, 64, None, None, 0.0))
        keeper.telemetry = WorkerTelemetry(0.0, 0.0, 64)
        await until(lambda: row() == (0.0, 0.0, 64, None, None, None))
        keeping.cancel()
        await keeper.close()

    asyncio.run(run())


def test_worker_reports_its_engine_over_http(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.batch(20)
    for table in ("batches", "queued_runs"):
        world.run(f"UPDATE {table} SET fleet = '{FLEET}'")  # noqa: S608
    input_store(world, 20, store=ObstoreObjects(f"file://{tmp_path}"))
    monkeypatch.setattr(build, "TelemetryReader", partial(TelemetryReader, interval=0.02))
    columns = "engine_running, engine_waiting, engine_kv_cache, concurrency"

    async def main(app: App) -> None:
        worker = app.build_worker(Pool.SPOT)
        running = asyncio.create_task(worker.run())
        await until(
            lambda: (
                world.rows(f"SELECT {columns} FROM workers")  # noqa: S608
                == [(64, 3, 0.25, 5)]
                and world.value("SELECT max(output_token_rate) FROM workers") > 0
            )
        )
        worker.stop()
        await asyncio.wait_for(running, 30)

    answers = {"/metrics": vllm().decode(), "/v1/embeddings": chat("x", tokens=8)}
    with serving({**VLLM, **answers}) as url:
        settings = Settings(
            database_url=SecretStr(world.database.url("worker")),
            object_store_url=f"file://{tmp_path}",
            engine=EngineKind.OPENAI,
            engine_url=url,
            worker_concurrency=5,
            lease_duration=0.3,
            fleet=FLEET,
            model_revision="qwen-2.5@a1b2",
        )
        app = App(settings, name="worker")
        try:
            asyncio.run(main(app))
        finally:
            app.close(5)
    assert exported()["engine_kv_cache_usage_ratio"] == 0.25
    revisions = world.rows("SELECT DISTINCT model_revision, status_code FROM results")
    assert revisions == [("qwen-2.5@a1b2", 200)]

"""Conformance of every engine to the `Engine` protocol."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from lowtide.engines.model import EngineRequest, NoopEngine, Ping
from lowtide.engines.outcomes import Answered
from lowtide.engines.simulated import SimulatedEngine
from lowtide.engines.upstream import UpstreamEngine
from lowtide.files.lines import ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from lowtide.engines.model import Engine
    from lowtide.engines.outcomes import Outcome

pytestmark = pytest.mark.parametrize("kind", ["simulated", "simulated-at-once", "noop", "upstream"])


@pytest.fixture
def build(kind: str, request: pytest.FixtureRequest) -> Callable[[], Engine]:
    match kind:
        case "simulated":
            return lambda: SimulatedEngine(seed=1, latency=0.005, concurrency=4)
        case "simulated-at-once":
            return lambda: SimulatedEngine(seed=1)
        case "noop":
            return NoopEngine
        case _:
            url = request.getfixturevalue("upstream").url
            return lambda: UpstreamEngine(url, concurrency=4)


def requests(count: int, endpoint: str = ENDPOINTS[0], start: int = 0) -> list[EngineRequest]:
    return [
        EngineRequest(n, endpoint, b'{"model":"m","input":"text %d"}' % n, attempt=1, spot=True)
        for n in range(start, start + count)
    ]


async def collect(engine: Engine, inputs: Sequence[EngineRequest]) -> list[tuple[int, Outcome]]:
    return [pair async for group in engine.run(inputs) for pair in group]


def with_engine(build: Callable[[], Engine], work: Callable[[Engine], Any]) -> Any:
    async def main() -> Any:
        engine = build()
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(main())


@pytest.mark.parametrize("count", [0, 1, 50])
def test_every_key_has_exactly_one_outcome(build: Callable[[], Engine], count: int) -> None:
    pairs = with_engine(build, lambda engine: collect(engine, requests(count)))
    assert sorted(key for key, _ in pairs) == list(range(count))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_answer_is_json_object_on_one_line(build: Callable[[], Engine], endpoint: str) -> None:
    [(_, outcome)] = with_engine(build, lambda engine: collect(engine, requests(1, endpoint)))
    assert isinstance(outcome, Answered)
    assert outcome.succeeded
    assert isinstance(json.loads(outcome.body), dict)
    assert b"\n" not in outcome.body


def test_concurrent_calls_do_not_mix(build: Callable[[], Engine]) -> None:
    async def work(engine: Engine) -> list[list[tuple[int, Outcome]]]:
        calls = (collect(engine, requests(20, start=start)) for start in (0, 100, 200))
        return await asyncio.gather(*calls)

    for start, pairs in zip((0, 100, 200), with_engine(build, work), strict=True):
        assert sorted(key for key, _ in pairs) == list(range(start, start + 20))


def test_abandoned_call_frees_its_slots(build: Callable[[], Engine]) -> None:
    async def work(engine: Engine) -> list[tuple[int, Outcome]]:
        abandoned = cast("AsyncGenerator[object]", engine.run(requests(20)))
        await anext(abandoned)
        await abandoned.aclose()
        return await collect(engine, requests(20))

    assert len(with_engine(build, work)) == 20


def test_cancelled_call_frees_its_slots(build: Callable[[], Engine]) -> None:
    async def work(engine: Engine) -> list[tuple[int, Outcome]]:
        task = asyncio.create_task(collect(engine, requests(20)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return await collect(engine, requests(20))

    assert len(with_engine(build, work)) == 20


def test_engine_closes_twice(build: Callable[[], Engine]) -> None:
    with_engine(build, lambda engine: engine.close())


def test_models_is_empty_without_model_list(build: Callable[[], Engine]) -> None:
    assert list(with_engine(build, lambda engine: engine.models())) == []


def test_probe_of_working_engine_is_well_and_answers(build: Callable[[], Engine]) -> None:
    probed = with_engine(build, lambda engine: engine.probe(Ping(ENDPOINTS[0], "m")))
    assert (probed.well, probed.answers) == (True, True)


def test_changing_limit_loses_no_request(build: Callable[[], Engine]) -> None:
    async def work(engine: Engine) -> list[tuple[int, Outcome]]:
        engine.limit(0)
        call = asyncio.create_task(collect(engine, requests(20)))
        await asyncio.sleep(0)
        engine.limit(1)
        await asyncio.sleep(0)
        engine.limit(100)
        return await call

    assert len(with_engine(build, work)) == 20

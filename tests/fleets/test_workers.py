"""Workers of fleets: mixed batches, and models that their engine knows by another name."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from lowtide.engines.outcomes import Answered, RetryPolicy
from lowtide.files.syntax import renamed
from tests.worker.workers import Bench, ScriptedEngine, good, input_store, until, work_during

if TYPE_CHECKING:
    from lowtide.engines.model import EngineRequest
    from lowtide.engines.outcomes import Outcome
    from tests.worlds import World

LINES = 20
LACKS = Answered(404, b"{}", lacks_model=True)


def _mixed(world: World, even: str, odd: str) -> Bench:
    """Return the bench of a batch whose requests name two models in turn."""
    batch = world.batch(LINES)
    world.run("UPDATE batches SET model = NULL WHERE id = :id", id=batch)
    bodies = {
        number: b'{"body":{"model":"%s","n":1.0}}' % (odd if number % 2 else even).encode()
        for number in range(1, LINES + 1)
    }
    store = input_store(world, LINES, odd=bodies)
    policy = RetryPolicy(3, 0.05, 0.05)
    return Bench.of(
        world, ScriptedEngine(), lines=LINES, store=store, policy=policy,
        served_names={"fast": "qwen-7b"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        pytest.param(b'{"model":"fast"}', b'{"model":"qwen-7b"}', id="alias"),
        pytest.param(
            rb'{"a":1e400,"model":"f\u0061st","b":{"model":"fast"}}',
            b'{"a":1e400,"model":"qwen-7b","b":{"model":"fast"}}',
            id="other values stay as they are",
        ),
        pytest.param(b'{"model": "qwen-7b"}', b'{"model": "qwen-7b"}', id="served name"),
        pytest.param(b"{}", b"{}", id="no model"),
    ],
)
def test_only_the_model_is_renamed(body: bytes, sent: bytes) -> None:
    assert renamed(body, {"fast": "qwen-7b"}) == sent


def test_engine_gets_the_names_that_it_knows(world: World) -> None:
    bench = _mixed(world, even="fast", odd="qwen-7b")

    async def during() -> None:
        await until(lambda: bench.finished() == LINES)

    work_during(bench, during)
    sent = [json.loads(request.body) for request in bench.engine.requests]
    assert sent == [{"model": "qwen-7b", "n": 1.0}] * LINES


def test_missing_model_of_mixed_batch_holds_up_no_other(world: World) -> None:
    bench = _mixed(world, even="gone", odd="served")

    def answer(request: EngineRequest) -> Outcome:
        return LACKS if b"gone" in request.body else good(request)

    bench.engine.answer = answer

    async def during() -> None:
        await until(lambda: bench.finished() == LINES // 2)
        assert not bench.watch.is_shut_off
        before = len(bench.engine.requests)
        await asyncio.sleep(0.5)
        # Each waits for a retry delay, as claims cannot leave it out.
        assert len(bench.engine.requests) - before <= LINES // 2 * 0.5 / 0.025
        bench.engine.answer = good
        await until(lambda: bench.finished() == LINES)

    work_during(bench, during)
    assert world.value("SELECT max(attempts) FROM results") == 1
    assert world.value("SELECT count(*) FROM results WHERE succeeded") == LINES

"""Faults of one model or one request neither block a worker nor last for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.engines import breaker
from lowtide.engines.breaker import Probed
from lowtide.engines.outcomes import Answered, RetryPolicy
from tests.worker.workers import Bench, ScriptedEngine, good, input_store, until, work_during

if TYPE_CHECKING:
    from lowtide.engines.model import Ping
    from tests.worlds import World

GATEWAY = Answered(502, b"{}")
FAST = RetryPolicy(3, 0.001, 0.002)


@pytest.fixture(autouse=True)
def _short_probe_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PROBE", 0.01)
    monkeypatch.setattr(breaker, "LAST_PROBE", 0.05)


class _Gateway(ScriptedEngine):
    """A gateway to several models; the one named "ill" has no backend."""

    def __init__(self) -> None:
        super().__init__(lambda request: GATEWAY if b"ill" in request.body else good(request))

    async def probe(self, ping: Ping | None = None) -> Probed:
        self.probes.append(ping)
        if ping is not None and ping.model == "ill":
            return Probed(well=False, reason="POST: 502")
        return Probed(well=True, answers=ping is not None)


def test_failing_model_behind_gateway_blocks_no_other(world: World) -> None:
    failing, healthy = world.batch(30), world.batch(30)
    world.run("UPDATE batches SET model = 'ill' WHERE id = :id", id=failing)
    world.run("UPDATE batches SET model = 'fine', status = 'validating' WHERE id = :id", id=healthy)
    store = input_store(world, 30)
    key = world.value("SELECT input_key FROM batches WHERE id = :id", id=failing)
    with store.open_writer(str(key)) as writer:
        writer.write(b" " * 100)
        for number in range(1, 31):
            line = b'{"body":{"model":"ill","n":%d}}' % number
            writer.write(line.ljust(90) + b" " * 10)
    bench = Bench.of(world, _Gateway(), lines=30, store=store, policy=FAST)

    async def during() -> None:
        await until(lambda: bench.watch.is_shut_off and len(bench.engine.requests) >= 3)
        world.run("UPDATE batches SET status = 'in_progress' WHERE id = :id", id=healthy)
        await until(lambda: bench.finished() == 30)

    work_during(bench, during)
    assert world.lines("results", healthy) == list(range(1, 31))
    assert world.value("SELECT max(attempts) FROM queue") == 0


@pytest.mark.parametrize("requests", [1, 12])
def test_request_that_always_gets_502_is_dead_lettered(world: World, requests: int) -> None:
    world.batch(requests)
    engine = ScriptedEngine(
        lambda request: GATEWAY if request.body == b'{"n":1}' else good(request)
    )
    bench = Bench.of(world, engine, lines=requests, policy=FAST)

    async def during() -> None:
        await until(lambda: bench.finished() == requests)

    work_during(bench, during)
    rows = world.rows("SELECT * FROM results WHERE NOT succeeded")
    assert [(row.line, row.attempts, row.dead_lettered) for row in rows] == [(1, 3, True)]
    assert len([request for request in engine.requests if request.body == b'{"n":1}']) >= 16
    assert requests == 1 or world.value("SELECT max(attempts) FROM results WHERE succeeded") == 1

"""Pausing and resuming pools: permissions, effects, and the behaviour of workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from lowtide.core.durations import ExponentialBackoff
from lowtide.core.errors import Forbidden
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.pools import Pool
from lowtide.core.scopes import Role
from lowtide.scheduler.pauses import Pools
from lowtide.tenants.sign_in import Principal
from tests.scheduler.test_pools_store import pause_store
from tests.worker.workers import Bench, ScriptedEngine, until

if TYPE_CHECKING:
    from tests.worlds import World

ANA = Principal("ana", Role.OPERATOR)


def _pools(world: World) -> Pools:
    return Pools(pause_store(world))


@pytest.mark.parametrize(
    "principal",
    [
        pytest.param(Principal("bo", Role.VIEWER), id="viewer"),
        pytest.param(Principal("cy", Role.OPERATOR, DEFAULT_TENANT), id="operator of one tenant"),
    ],
)
def test_only_installation_operators_pause_and_resume(world: World, principal: Principal) -> None:
    pools = _pools(world)
    for action in (pools.effect, pools.pause, pools.resume):
        with pytest.raises(Forbidden):
            action(principal, Pool.SPOT)
    assert all(standing.pause is None for standing in pools.standings())
    pools.pause(ANA, Pool.SPOT)
    with pytest.raises(Forbidden):
        pools.resume(principal, Pool.SPOT)
    assert pools.standings()[0].pause is not None


def test_effect_previews_pause_without_pausing(world: World) -> None:
    world.batch(5, pool="dedicated")
    pools = _pools(world)
    effect = pools.effect(ANA, Pool.DEDICATED)
    assert (effect.queued, effect.running, effect.endangered.batches) == (5, 0, 1)
    assert pools.effect(ANA, Pool.SPOT).endangered.batches == 0
    assert all(standing.pause is None for standing in pools.standings())


def test_resume_returns_ended_pause(world: World) -> None:
    pools = _pools(world)
    assert pools.resume(ANA, Pool.SPOT) is None
    pause = pools.pause(ANA, Pool.SPOT)
    assert pools.resume(ANA, Pool.SPOT) == pause


def test_worker_backs_off_while_paused_and_continues_when_woken(world: World) -> None:
    world.batch(30)
    pools = _pools(world)
    delays: list[float] = []

    class Watched(ExponentialBackoff):
        def next_delay(self) -> float:
            delays.append(super().next_delay())
            return delays[-1]

    backoff = Watched(0.01, 600.0, factor=30.0)
    bench = Bench.of(world, ScriptedEngine(hold=True), lines=30, backoff=backoff)

    async def during() -> None:
        await until(lambda: bench.engine.running == 12)
        pools.pause(ANA, Pool.SPOT)
        before = bench.queue.calls["claim"]
        bench.engine.release()
        await until(lambda: delays[-1:] == [9.0])
        assert bench.queue.calls["claim"] - before == len(delays) == 3, (
            "it must claim ever less often"
        )
        assert bench.finished() == 12, "claimed requests must finish"
        pools.resume(ANA, Pool.SPOT)
        bench.worker.wake()
        await until(lambda: bench.finished() == 30, within=5)
        bench.worker.stop()

    async def both() -> None:
        await asyncio.wait_for(asyncio.gather(bench.worker.run(), during()), 20)

    asyncio.run(both())

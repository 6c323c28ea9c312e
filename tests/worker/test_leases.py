"""A worker's lease reports its utilization."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lowtide.core.pools import Pool
from tests.worker.workers import FlakyQueue, lease_keeper, until

if TYPE_CHECKING:
    from tests.worlds import World


def test_renewal_reports_utilization(world: World) -> None:
    keeper = lease_keeper(world, FlakyQueue(world.queue), duration=0.03, full=2)

    def reported() -> int:
        return int(world.value("SELECT coalesce(max(full_lines), 0) FROM workers"))

    async def run() -> None:
        await keeper.open()
        keeping = asyncio.create_task(keeper.keep(lambda: None))
        keeper.utilization.took(10)
        keeper.utilization.left(2, ran=2)
        keeper.utilization.left(3, ran=3)
        await until(lambda: reported() == 3)
        keeping.cancel()
        await keeper.close()

    asyncio.run(run())
    assert world.value("SELECT count(*) FROM workers") == 0


def test_lost_lease_restarts_utilization(world: World) -> None:
    keeper = lease_keeper(
        world, FlakyQueue(world.queue), pool=Pool.DEDICATED, duration=0.03, full=2
    )

    async def run() -> None:
        await keeper.open()
        keeping = asyncio.create_task(keeper.keep(lambda: None))
        keeper.utilization.took(10)
        keeper.utilization.left(2, ran=2)
        keeper.utilization.left(3, ran=3)
        first = keeper.lease
        world.run("DELETE FROM workers")
        await until(lambda: keeper.lease not in {None, first})
        keeping.cancel()
        await keeper.close()

    asyncio.run(run())
    assert keeper.utilization.total().lines == 0

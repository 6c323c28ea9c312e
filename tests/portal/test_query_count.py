"""The number of statements that open pages cost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from lowtide.core.ids import now
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.planning.demand import PoolScale
from lowtide.status.snapshot_store import SnapshotStore
from lowtide.status.watch import SystemWatch
from portal.polling import Poller

if TYPE_CHECKING:
    from tests.conftest import Database

LOOKS = 3


async def _statements(database: Database, pages: int) -> int:
    """Return the number of statements of LOOKS looks while `pages` pages follow."""
    engine = database.engine("operator")
    count, looks = 0, 0
    done = asyncio.Event()

    def executed(*_: object) -> None:
        nonlocal count
        count += 1

    scales = {DEFAULT_FLEET: {pool: PoolScale(5, 4) for pool in Pool}}
    system = SystemWatch(SnapshotStore(engine), scales, clock=now)

    def looked() -> None:
        nonlocal looks
        looks += 1
        if looks == LOOKS:
            event.remove(engine, "before_cursor_execute", executed)
            loop.call_soon_threadsafe(done.set)

    loop = asyncio.get_running_loop()
    poller = Poller(system, looks=[looked])
    event.listen(engine, "before_cursor_execute", executed)
    for page in range(pages):
        poller.follow(f"page {page}", 0.01)
    poller.start()
    try:
        await asyncio.wait_for(done.wait(), 20)
    finally:
        poller.stop()
    return count


@pytest.mark.parametrize("pages", [1, 50])
def test_fifty_pages_cost_as_many_statements_as_one(database: Database, pages: int) -> None:
    assert asyncio.run(_statements(database, pages)) == LOOKS * 8

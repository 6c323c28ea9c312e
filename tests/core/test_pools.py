"""The effect of pausing a pool."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lowtide.core.pools import (
    DEFAULT_FLEET,
    FleetPool,
    OpenDeadlines,
    PauseEffect,
    Pool,
    PoolPause,
    PoolState,
    effect_of,
)

FIRST_DEADLINE = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINES = OpenDeadlines(3, FIRST_DEADLINE)

PAUSE = PoolPause(Pool.SPOT, FIRST_DEADLINE, "ana")


@pytest.mark.parametrize(
    ("pool", "endangered"),
    [
        pytest.param(Pool.SPOT, OpenDeadlines(0, None), id="spot guarantees no deadline"),
        pytest.param(Pool.DEDICATED, DEADLINES, id="dedicated guarantees all deadlines"),
    ],
)
def test_pause_of_dedicated_endangers_deadlines(pool: Pool, endangered: OpenDeadlines) -> None:
    standings = [PoolState(each, 7 if each is pool else 99, 2, 1) for each in Pool]
    assert effect_of(FleetPool(DEFAULT_FLEET, pool), standings, DEADLINES) == PauseEffect(
        pool, 7, 2, endangered
    )


@pytest.mark.parametrize(("pool", "stops_all"), [(Pool.SPOT, False), (Pool.DEDICATED, True)])
def test_pause_of_last_running_pool_stops_everything(pool: Pool, *, stops_all: bool) -> None:
    standings = [PoolState(Pool.SPOT, 0, 0, 0, PAUSE), PoolState(Pool.DEDICATED, 0, 0, 0)]
    assert effect_of(FleetPool(DEFAULT_FLEET, pool), standings, DEADLINES).stops_all is stops_all

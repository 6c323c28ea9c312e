"""What a pause would do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lowtide.core.pools import OpenDeadlines, PauseEffect, Pool, PoolPause, PoolStanding, effect_of

HELD_FIRST = datetime(2026, 1, 1, tzinfo=UTC)
HELD = OpenDeadlines(3, HELD_FIRST)

PAUSE = PoolPause(Pool.SPOT, HELD_FIRST, "ana")


@pytest.mark.parametrize(
    ("pool", "endangered"),
    [
        pytest.param(Pool.SPOT, OpenDeadlines(0, None), id="spot promises nothing"),
        pytest.param(Pool.DEDICATED, HELD, id="dedicated promises all there is"),
    ],
)
def test_a_pause_of_dedicated_gives_deadlines_up(pool: Pool, endangered: OpenDeadlines) -> None:
    standings = [PoolStanding(each, 7 if each is pool else 99, 2, 1) for each in Pool]
    assert effect_of(pool, standings, HELD) == PauseEffect(pool, 7, 2, endangered)


@pytest.mark.parametrize(("pool", "stops_all"), [(Pool.SPOT, False), (Pool.DEDICATED, True)])
def test_a_pause_of_the_last_pool_stops_everything(pool: Pool, *, stops_all: bool) -> None:
    standings = [PoolStanding(Pool.SPOT, 0, 0, 0, PAUSE), PoolStanding(Pool.DEDICATED, 0, 0, 0)]
    assert effect_of(pool, standings, HELD).stops_all is stops_all

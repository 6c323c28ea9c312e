"""What a pause would do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lowtide.domain.pools import OpenDeadlines, PauseEffect, Pool, PoolStanding, effect_of

HELD = OpenDeadlines(3, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("pool", "endangered"),
    [
        pytest.param(Pool.SPOT, OpenDeadlines(0, None), id="spot promises nothing"),
        pytest.param(Pool.DEDICATED, HELD, id="dedicated promises all there is"),
    ],
)
def test_a_pause_of_dedicated_gives_deadlines_up(pool: Pool, endangered: OpenDeadlines) -> None:
    standing = PoolStanding(pool, queued=7, running=2, workers=1)
    assert effect_of(standing, HELD) == PauseEffect(pool, 7, 2, endangered)

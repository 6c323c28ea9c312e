"""What the page of queues is made of, without a browser."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock
from zoneinfo import ZoneInfo

import pytest
from nicegui import Client, run
from nicegui.page import page

from lowtide.core.pools import OpenDeadlines, PauseEffect, Pool, PoolPause
from lowtide.status.history import History, HistoryPoint, HistoryRange, PoolPoint, SlaBar, unbroken
from portal.components.charts import Line, drawn, whole_bars
from portal.components.pausing import consequences, note_of
from portal.pages.queues import address_of, range_of
from portal.polling import Readings
from portal.watching import FollowedHistory

NOW = datetime(2026, 1, 2, 12, 4, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
THROUGHPUT = Line("spot", Pool.SPOT, lambda each: each.throughput)


def _points(values: list[tuple[int, float | None]]) -> list[HistoryPoint]:
    return [
        HistoryPoint(
            NOW + minute * MINUTE, {Pool.SPOT: PoolPoint(0, 0, 0.0, 0, 0, value, None, None)}
        )
        for minute, value in values
    ]


def _shown(data: list[Any]) -> list[Any]:
    """Return a value a point, `-` for a break, and `.` before a point that is a dot."""
    return [
        f".{item['value'][1]:g}"
        if isinstance(item, dict)
        else ("-" if item[1] is None else f"{item[1]:g}")
        for item in data
    ]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([(0, 1), (1, 2), (2, 3)], ["1", "2", "3"], id="a line"),
        pytest.param([(0, 1), (1, 2), (9, 3), (10, 4)], ["1", "2", "-", "3", "4"], id="a gap"),
        pytest.param([(0, 1), (1, 2), (9, 3)], ["1", "2", "-", ".3"], id="a point alone is a dot"),
        pytest.param([(0, None), (1, 2), (2, 3)], ["2", "3"], id="nothing flowed yet"),
        pytest.param([(0, 1), (1, None), (2, 3)], [".1", "-", ".3"], id="not measured in between"),
    ],
)
def test_lines_break_where_nothing_was_sampled(
    values: list[tuple[int, float | None]], shown: list[str]
) -> None:
    assert _shown(drawn(unbroken(_points(values), MINUTE), THROUGHPUT)) == shown


def test_a_pool_without_a_point_has_no_line() -> None:
    points = [HistoryPoint(NOW, {})]
    assert drawn(unbroken(points, MINUTE), THROUGHPUT) == []


@pytest.mark.parametrize("range_", list(HistoryRange))
def test_no_bar_of_deadlines_is_cut(range_: HistoryRange) -> None:
    bars = [SlaBar(at, 1, 0) for at in (NOW - range_.span - MINUTE, NOW - MINUTE)]
    assert whole_bars(History(range_, NOW, sla=tuple(bars))) == (
        bars[0].at,
        bars[1].at + range_.bar,
    )
    assert whole_bars(History(range_, NOW)) == (NOW - range_.span, NOW)


def test_the_range_chosen_last_is_shown_whichever_is_read_first() -> None:
    slow, book, live = threading.Event(), Mock(), Mock(paused=False)

    def read(wanted: HistoryRange) -> History:
        if wanted is HistoryRange.WEEK:
            assert slow.wait(10)
        return History(wanted, NOW)

    book.read = read

    async def choose_twice() -> History | None:
        with Client(page(""), request=None):
            followed = FollowedHistory(Mock(history=book, readings=Readings()), live)
            week = asyncio.create_task(followed.follow(HistoryRange.WEEK))
            await asyncio.sleep(0)
            await followed.follow(HistoryRange.HOUR)
            slow.set()
            await week
            return followed.seen

    run.setup()
    seen = asyncio.run(choose_twice())
    assert seen is not None
    assert seen.range is HistoryRange.HOUR


@pytest.mark.parametrize(
    ("since", "zone", "note"),
    [
        (NOW - MINUTE, "UTC", "Spot paused since 12:03 UTC by ana"),
        (NOW - timedelta(days=1), "UTC", "Spot paused since 2026-01-01 12:04 UTC by ana"),
        (NOW - timedelta(hours=3), "Asia/Tokyo", "Spot paused since 18:04 JST by ana"),
        (NOW - 7 * timedelta(hours=1), "Asia/Tokyo", "Spot paused since 14:04 JST by ana"),
        (NOW - timedelta(hours=13), "Asia/Tokyo", "Spot paused since 08:04 JST by ana"),
        (
            NOW - timedelta(hours=22),
            "Asia/Tokyo",
            "Spot paused since 2026-01-01 23:04 JST by ana",
        ),
    ],
)
def test_a_pause_is_said_with_its_time_and_name(since: datetime, zone: str, note: str) -> None:
    assert note_of(PoolPause(Pool.SPOT, since, "ana"), NOW, ZoneInfo(zone)) == note


NONE, THREE = OpenDeadlines(0, None), OpenDeadlines(3, NOW + timedelta(hours=2))


@pytest.mark.parametrize(
    ("effect", "said", "unsaid"),
    [
        pytest.param(
            PauseEffect(Pool.SPOT, 1234, 1, NONE),
            ["Queued in spot: 1,234 requests. Running: 1 request", "No deadline is put at risk"],
            ["At risk", "other pool"],
            id="spot",
        ),
        pytest.param(
            PauseEffect(Pool.DEDICATED, 0, 0, THREE),
            [
                "go back to spot",
                "At risk until dedicated is resumed: 3 batches",
                "first deadline is in 2 h",
            ],
            ["No deadline", "other pool"],
            id="dedicated",
        ),
        pytest.param(
            PauseEffect(Pool.DEDICATED, 0, 0, NONE),
            ["go back to spot"],
            ["At risk"],
            id="dedicated, nothing is held",
        ),
        pytest.param(
            PauseEffect(Pool.SPOT, 1, 0, NONE, stops_all=True),
            ["no requests run until a pool is resumed"],
            ["No deadline", "move to dedicated"],
            id="the last one",
        ),
    ],
)
def test_the_question_says_what_a_pause_does(
    effect: PauseEffect, said: list[str], unsaid: list[str]
) -> None:
    whole = " ".join(consequences(effect, NOW))
    assert [part for part in said if part not in whole] == []
    assert [part for part in unsaid if part in whole] == []


@pytest.mark.parametrize("wanted", list(HistoryRange))
def test_an_address_says_the_range(wanted: HistoryRange) -> None:
    assert range_of(address_of(wanted).partition("range=")[2]) is wanted


@pytest.mark.parametrize("text", ["", "2h", "<script>", "1h,7d"])
def test_an_address_that_means_nothing_shows_the_last_hour(text: str) -> None:
    assert range_of(text) is HistoryRange.HOUR

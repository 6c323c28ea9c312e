"""Parts of the page of queues, without a browser."""

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
from lowtide.engines.breaker import BreakerState
from lowtide.status.history import (
    History,
    HistoryPoint,
    HistoryRange,
    PauseSpan,
    PoolPoint,
    SlaBar,
    unbroken,
)
from lowtide.status.snapshot import EngineUse, LostEngine
from portal.components.charts import Line, Mark, drawn, marks_of, whole_bars
from portal.components.pausing import consequences, note_of
from portal.pages.queues import address_of, engines_in_words, range_of, throughput
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
    """Return one text per point: `-` for a break, with a leading `.` for an isolated point."""
    return [
        f".{item['value'][1]:g}"
        if isinstance(item, dict)
        else ("-" if item[1] is None else f"{item[1]:g}")
        for item in data
    ]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        pytest.param([], [], id="empty"),
        pytest.param([(0, 1), (1, 2), (2, 3)], ["1", "2", "3"], id="line"),
        pytest.param([(0, 1), (1, 2), (9, 3), (10, 4)], ["1", "2", "-", "3", "4"], id="gap"),
        pytest.param([(0, 1), (1, 2), (9, 3)], ["1", "2", "-", ".3"], id="isolated point"),
        pytest.param([(0, None), (1, 2), (2, 3)], ["2", "3"], id="no first value"),
        pytest.param([(0, 1), (1, None), (2, 3)], [".1", "-", ".3"], id="missing value"),
    ],
)
def test_chart_lines_break_at_gaps(
    values: list[tuple[int, float | None]], shown: list[str]
) -> None:
    assert _shown(drawn(unbroken(_points(values), MINUTE), THROUGHPUT)) == shown


def test_tile_of_throughput_adds_up_last_points_of_chart() -> None:
    spot, dedicated = (PoolPoint(0, 0, 0.0, 0, 0, rate, None, None) for rate in (20.0, 2.5))
    points = (
        *_points([(-1, 900)]),
        HistoryPoint(NOW, {Pool.SPOT: spot, Pool.DEDICATED: dedicated}),
    )
    shown = throughput(History(HistoryRange.HOUR, NOW, points))
    assert shown == ("22.5/s", "20 spot · 2.5 dedicated, mean of 1 min")
    assert throughput(History(HistoryRange.HOUR, NOW)) == ("—", "no sample")


@pytest.mark.parametrize(
    ("engines", "text"),
    [
        pytest.param(EngineUse(), "", id="nothing known"),
        pytest.param(EngineUse(0.0, 0.0), "0 input and 0 output tokens/s", id="idle"),
        pytest.param(
            EngineUse(12_345.6, 3.21), "12,346 input and 3.2 output tokens/s", id="no report"
        ),
        pytest.param(
            EngineUse(1.0, 2.0, 4, 128, 6, 0.834),
            "1 input and 2 output tokens/s · in engines: 128 running, 6 waiting, KV caches up to 83% full",
            id="everything",
        ),
        pytest.param(
            EngineUse(None, None, 3, 0, 0, None),
            "in 3 of 4 engines: 0 running, 0 waiting",
            id="some report",
        ),
        pytest.param(
            EngineUse(reporting=1, kv_cache=1.0),
            "in 1 of 4 engines: KV cache 100% full",
            id="cache",
        ),
    ],
)
def test_engines_are_in_words(engines: EngineUse, text: str) -> None:
    assert engines_in_words(engines, 4) == text


def test_pauses_and_lost_engines_are_marks() -> None:
    pauses = (PauseSpan(Pool.SPOT, NOW - MINUTE, NOW), PauseSpan(Pool.DEDICATED, NOW, None))
    lost = LostEngine("w", Pool.SPOT, BreakerState.OPEN, "", NOW)
    assert marks_of(History(HistoryRange.HOUR, NOW, pauses=pauses), [lost]) == (
        Mark("spot paused", NOW - MINUTE, NOW),
        Mark("dedicated paused", NOW, None),
        Mark("spot engine away", NOW, None),
    )
    history = History(HistoryRange.HOUR, NOW, pauses=(PauseSpan(Pool.SPOT, NOW, None, "large"),))
    assert marks_of(history) == (Mark("large spot paused", NOW, None),)


def test_pool_without_points_has_no_line() -> None:
    points = [HistoryPoint(NOW, {})]
    assert drawn(unbroken(points, MINUTE), THROUGHPUT) == []


@pytest.mark.parametrize("range_", list(HistoryRange))
def test_axis_covers_whole_deadline_bars(range_: HistoryRange) -> None:
    bars = [SlaBar(at, 1, 0) for at in (NOW - range_.span - MINUTE, NOW - MINUTE)]
    assert whole_bars(History(range_, NOW, sla=tuple(bars))) == (
        bars[0].at,
        bars[1].at + range_.bar,
    )
    assert whole_bars(History(range_, NOW)) == (NOW - range_.span, NOW)


def test_last_selected_range_is_shown() -> None:
    slow, store, live = threading.Event(), Mock(), Mock(paused=False)

    def read(range_: HistoryRange, _fleet: str | None) -> History:
        if range_ is HistoryRange.WEEK:
            assert slow.wait(10)
        return History(range_, NOW)

    store.read = read

    async def select_twice() -> History | None:
        with Client(page(""), request=None):
            followed = FollowedHistory(Mock(history=store, readings=Readings()), live)
            week = asyncio.create_task(followed.follow(HistoryRange.WEEK))
            await asyncio.sleep(0)
            await followed.follow(HistoryRange.HOUR)
            slow.set()
            await week
            return followed.seen

    run.setup()
    seen = asyncio.run(select_twice())
    assert seen is not None
    assert seen.range is HistoryRange.HOUR


@pytest.mark.parametrize(
    ("since", "zone", "note"),
    [
        (NOW - MINUTE, "UTC", "Spot paused since 2 Jan 2026, 12:03:00 (1 min ago) by ana"),
        (
            NOW - timedelta(hours=22, minutes=5),
            "Asia/Tokyo",
            "Spot paused since 1 Jan 2026, 22:59:00 (22 h ago) by ana",
        ),
    ],
)
def test_pause_note_has_time_and_name(since: datetime, zone: str, note: str) -> None:
    assert note_of(PoolPause(Pool.SPOT, since, "ana"), NOW, ZoneInfo(zone)) == note


def test_pause_note_names_the_fleet() -> None:
    note = note_of(PoolPause(Pool.SPOT, NOW, "ana", "llama-70b"), NOW, ZoneInfo("UTC"))
    assert note.startswith("Spot of llama-70b paused since ")


NONE, THREE = OpenDeadlines(0, None), OpenDeadlines(3, NOW + timedelta(hours=2))


@pytest.mark.parametrize(
    ("effect", "included", "excluded"),
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
            id="dedicated, no open deadlines",
        ),
        pytest.param(
            PauseEffect(Pool.SPOT, 1, 0, NONE, stops_all=True),
            ["no requests run until a pool is resumed"],
            ["No deadline", "move to dedicated"],
            id="last running pool",
        ),
        pytest.param(
            PauseEffect(Pool.DEDICATED, 2, 0, THREE, stops_all=True, fleet="large"),
            [
                "Queued in dedicated of large: 2",
                "no requests of large run until",
                "until dedicated of large is resumed",
            ],
            [],
            id="fleet",
        ),
    ],
)
def test_confirmation_explains_effect_of_pause(
    effect: PauseEffect, included: list[str], excluded: list[str]
) -> None:
    shown = " ".join(consequences(effect, NOW))
    assert [part for part in included if part not in shown] == []
    assert [part for part in excluded if part in shown] == []


@pytest.mark.parametrize("range_", list(HistoryRange))
def test_range_survives_its_address(range_: HistoryRange) -> None:
    assert range_of(address_of(range_).partition("range=")[2]) is range_


def test_fleet_is_in_the_address() -> None:
    assert address_of(HistoryRange.HOUR) == "/queues"
    assert address_of(HistoryRange.HOUR, "large") == "/queues?fleet=large"
    assert address_of(HistoryRange.WEEK, "large") == "/queues?range=7d&fleet=large"


@pytest.mark.parametrize("text", ["", "2h", "<script>", "1h,7d"])
def test_invalid_range_shows_last_hour(text: str) -> None:
    assert range_of(text) is HistoryRange.HOUR

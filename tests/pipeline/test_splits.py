"""Splits: all or nothing, and only once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import Unavailable
from lowtide.core.pools import Pool
from lowtide.files.index import FileSegment, read_rows, render_rows
from lowtide.files.lines import InputLine, Problem
from lowtide.fleets.placement import DEFAULT_PLACEMENT
from lowtide.pipeline.split_store import Index
from tests.worlds import PRICES, Running, World, gate, input_lines, together

if TYPE_CHECKING:
    from collections.abc import Iterator


def _index(*lines: int) -> Index:
    """Return an index of segments with so many requests; the positions of their rows are wrong."""
    return Index((("m", sum(lines)),), [FileSegment(each, 0, 0) for each in lines])


def test_split_stores_and_queues_every_request(world: World) -> None:
    batch = world.new_batch()
    assert world.split(batch, 2500)
    assert world.lines("requests", batch) == world.lines("queue", batch) == list(range(1, 2501))
    row = world.row(batch)
    assert (row.status, row.total, row.model) == ("in_progress", 2500, "m")
    assert row.in_progress_at is not None
    (queued,) = world.rows(
        "SELECT *, deadline = :d AS due FROM queue WHERE line = 7", d=row.deadline
    )
    assert (queued.pool, queued.attempts, queued.tenant_id, queued.due) == (
        "spot",
        0,
        row.tenant_id,
        True,
    )


@pytest.mark.parametrize(
    "custom_id",
    [
        r"\N",
        r"\.",
        "a\tb",
        "a\nb",
        "a\r\nb",
        "\\",
        r"\t",
        "%s :x",
        "é𝄞\u2028\u0085",
        "'\"$$",
        " x ",
        "\x01\x0b",
    ],
)
def test_any_custom_id_survives_copy(world: World, custom_id: str) -> None:
    batch = world.new_batch()
    given = [InputLine(1, custom_id, 3, 4, -(2**31)), InputLine(2, "next", 5, 6)]
    index = _index(2)
    with world.opened(batch, index) as split:
        assert split is not None
        split.copy([render_rows(given)])
        assert split.start(index, DEFAULT_PLACEMENT, PRICES) == ()
    assert [row.custom_id for row in read_rows([render_rows(given)])] == [custom_id, "next"]
    rows = world.rows("SELECT custom_id, start, length, checksum FROM requests ORDER BY line")
    assert [tuple(row) for row in rows] == [(custom_id, 3, 4, -(2**31)), ("next", 5, 6, None)]


def test_rejected_batch_is_never_split(world: World) -> None:
    batch = world.new_batch()
    world.splits.reject(batch, [Problem("bad", "wrong", "body", 3000), Problem("worse", "file")])
    row = world.row(batch)
    assert (row.status, row.failed_at is not None) == ("failed", True)
    assert row.errors == [
        {"code": "bad", "message": "wrong", "param": "body", "line": 3000},
        {"code": "worse", "message": "file", "param": None, "line": None},
    ]
    assert world.lines("requests", batch) == []
    assert world.split(batch, 1) is False


def test_failed_source_leaves_nothing_and_frees_connections(world: World) -> None:
    engine = world.own_engine("worker")
    batch = world.new_batch()
    before = world.contents()
    world.splits._engine = engine

    def source() -> Iterator[bytes]:
        rows = render_rows(input_lines(5000))
        yield rows[: len(rows) // 2 - 3]  # in the middle of a row
        raise OSError("the store went away")

    def fail() -> None:
        with world.opened(batch, _index(5000)) as split:
            assert split is not None
            split.copy(source())

    for _ in range(6):  # more often than the pool has connections
        with pytest.raises(Unavailable):
            fail()
    assert world.contents() == before
    assert world.split(batch, 10)
    assert world.lines("queue", batch) == list(range(1, 11))


def test_killed_split_leaves_nothing(world: World) -> None:
    batch = world.new_batch()
    before = world.contents()

    class Killed(BaseException):
        pass

    def die() -> None:
        with world.opened(batch, _index(100)) as split:
            assert split is not None
            split.copy([render_rows(input_lines(100))])
            split.start(_index(100), DEFAULT_PLACEMENT, PRICES)
            raise Killed

    with pytest.raises(Killed):
        die()
    assert world.contents() == before
    assert world.split(batch, 100)


def test_concurrent_splits_succeed_once(world: World) -> None:
    for _ in range(5):
        batch = world.new_batch()
        results = together(*[partial(world.split, batch, 50)] * 3)
        assert sorted(results) == [False, False, True]
        assert world.lines("queue", batch) == list(range(1, 51))


@pytest.mark.parametrize(
    "before", ["COPY incoming", "INSERT INTO requests", "INSERT INTO queued_runs"]
)
def test_batch_cancelled_during_split_queues_nothing(world: World, before: str) -> None:
    batch = world.new_batch()
    slow = world.own_engine("worker")
    splitter = World(world.database)
    splitter.splits._engine = slow
    with gate(slow, before="CREATE TEMPORARY TABLE" if "COPY" in before else before) as stopped:
        split = Running(lambda: splitter.split(batch, 20))
        stopped.wait()
        assert world.cancel(batch) is True
        stopped.opened.set()
        assert split.result() is False
    assert world.lines("queue", batch) == []
    assert world.lines("requests", batch) == []
    row = world.row(batch)
    assert (row.status, row.total) == ("cancelling", 0)
    assert world.drained(batch) == 1


def test_cancel_waits_for_split_that_started_batch(world: World) -> None:
    batch = world.new_batch()
    slow = world.own_engine("worker")
    splitter = World(world.database)
    splitter.splits._engine = slow
    with gate(slow, before="INSERT INTO segments") as stopped:
        split = Running(lambda: splitter.split(batch, 20))
        stopped.wait()
        cancelled = Running(lambda: world.cancel(batch))
        world.blocked()
        stopped.opened.set()
        assert split.result() is True
        assert cancelled.result() is True
    assert world.lines("queue", batch) == []
    assert world.drained(batch) == 1
    lease = world.queue.open_lease(Pool.SPOT, "w")
    assert world.queue.claim(lease, Pool.SPOT, 5) == []


def test_started_batch_is_not_rejected(world: World) -> None:
    batch = world.batch(1)
    world.splits.reject(batch, [Problem("late", "too late")])
    assert world.row(batch).status == "in_progress"

"""Partitions: made before anyone needs them, dropped when nobody does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.core.ids import BatchId, new_id
from lowtide.database.connections import sqlstate
from lowtide.retention.partitions import (
    DAYS_AHEAD,
    PartitionStore,
    Range,
    gaps_between,
)
from tests.retention.days import (
    DAY,
    PARTITIONED,
    active,
    aged,
    by_days,
    day,
    ended,
    new_id_of,
    partitions,
    retention,
    rows,
)
from tests.worlds import Running, World, together

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import TextClause

    from tests.conftest import Database

MAKE = text("SELECT make_partitions(:batch)")
DROP = text("SELECT drop_partition(:name)")


@pytest.fixture
def days(database: Database) -> World:
    """A world in which every day has its own partitions."""
    return by_days(database)


def _make(world: World, batch: BatchId) -> int:
    with world.worker.begin() as connection:
        return int(connection.execute(MAKE, {"batch": batch}).scalar_one())


def test_coming_days_have_partitions(days: World) -> None:
    assert partitions(days) == {day(-ahead) for ahead in range(DAYS_AHEAD + 1)}


def test_concurrent_calls_make_each_partition_once(days: World) -> None:
    batch = new_id_of(3)
    made = together(*[lambda: _make(days, batch)] * 6)
    assert sorted(made) == [0, 0, 0, 0, 0, len(PARTITIONED)]


@pytest.mark.parametrize("days_ago", [4000, -4000], ids=["behind", "ahead"])
def test_batch_of_wrong_clock_is_split(days: World, days_ago: float) -> None:
    batch = active(days, days_ago)
    assert rows(days, batch)["requests"] == 3
    assert day(days_ago) in partitions(days)


def test_id_of_any_version_has_a_day(days: World) -> None:
    last = BatchId(type(new_id())(int=14 * 2**124))
    assert _make(days, last) == len(PARTITIONED)
    assert _make(days, last) == 0


def test_tick_makes_partitions_of_active_batches(days: World) -> None:
    days.new_batch(id=new_id_of(2))
    retention(days).make_partitions()
    assert day(2) in partitions(days)


def test_partition_answers_only_through_its_table(days: World) -> None:
    batch = active(days, 1)
    for role in ("worker", "operator", "api"):
        with (
            days.database.engine(role).connect() as connection,
            pytest.raises(DBAPIError) as refused,
        ):
            connection.execute(text(f"SELECT * FROM requests_{day(1)}"))  # noqa: S608
        assert sqlstate(refused.value) == "42501"
    with days.database.engine("api").begin() as connection:
        count = text("SELECT count(*) FROM requests WHERE batch_id = :batch")
        assert connection.execute(count, {"batch": batch}).scalar_one() == 0


def test_partition_has_the_parts_of_its_table(days: World) -> None:
    """Indexes by name, the trigger, and the identity, whatever way the partition was made."""
    batch = ended(days, 1)
    days.run("UPDATE dead_letters SET error_code = NULL")
    (letter,) = days.rows("SELECT * FROM dead_letters WHERE batch_id = :batch", batch=batch)
    assert letter.error_code is None
    wanted = days.rows(
        "SELECT indexname FROM pg_indexes WHERE tablename = ANY(:tables)", tables=list(PARTITIONED)
    )
    found = days.rows(
        "SELECT indexname FROM pg_indexes WHERE tablename LIKE '%' || :day", day=f"_{day(1)}"
    )
    assert {row.indexname for row in found} == {f"{row.indexname}_{day(1)}" for row in wanted}


def test_http_error_names_a_letter_in_a_new_partition(days: World) -> None:
    batch = ended(days, 1)
    code = days.value("SELECT error_code FROM dead_letters WHERE batch_id = :batch", batch=batch)
    assert code == "http_400"


def _refusal(world: World, name: str) -> str | None:
    with world.worker.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(DROP, {"name": name})
    return sqlstate(refused.value)


def test_partition_with_an_active_batch_is_not_dropped(days: World) -> None:
    batch = active(days, 1)
    assert _refusal(days, f"requests_{day(1)}") == "55006"
    assert rows(days, batch)["requests"] == 3


def test_partition_with_data_in_retention_is_not_dropped(days: World) -> None:
    batch = ended(days, 1)
    assert _refusal(days, f"results_{day(1)}") == "55006"
    assert rows(days, batch)["results"] == 3


@pytest.mark.parametrize("days_ago", [0, -1])
def test_partition_of_today_is_not_dropped(days: World, days_ago: int) -> None:
    assert _refusal(days, f"requests_{day(days_ago)}") == "55006"


@pytest.mark.parametrize("role", ["api", "operator"])
@pytest.mark.parametrize("call", [DROP, MAKE], ids=["drop", "make"])
def test_only_the_worker_changes_partitions(days: World, role: str, call: TextClause) -> None:
    with days.database.engine(role).connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(call, {"name": "x", "batch": new_id()})
    assert sqlstate(refused.value) == "42501"


def test_nothing_but_a_partition_is_dropped(days: World) -> None:
    with days.worker.begin() as connection:
        assert not connection.execute(DROP, {"name": "batches"}).scalar_one()
    assert days.value("SELECT count(*) FROM batches") == 0


def test_drop_in_use_is_postponed_and_nobody_waits_longer(days: World) -> None:
    """A reader that comes after the drop waits for it, but not for whom the drop waits."""
    batch = ended(days, 1)
    days.run("UPDATE batches SET data_ended_at = now()")
    aged(days, seconds=DAY)
    store, name = PartitionStore(days.worker), f"requests_{day(1)}"
    with days.worker.connect() as busy:
        busy.execute(text("SELECT count(*) FROM requests"))
        drop = Running(lambda: store.drop(name))
        days.blocked()
        began = time.monotonic()
        assert rows(days, batch)["requests"] == 3
        assert time.monotonic() - began < 1
        assert drop.result() is False
        busy.rollback()
    assert store.drop(name) is True
    assert store.drop(name) is False
    assert rows(days, batch) == {
        "requests": 0, "results": 3, "custom_ids": 3, "request_events": 1, "dead_letters": 1,
    }  # fmt: skip


def _id(number: int) -> UUID:
    return type(new_id())(int=number)


@pytest.mark.parametrize(
    ("ranges", "gaps"),
    [
        pytest.param([], [(0, 2**128 - 1)], id="none"),
        pytest.param([(0, 5)], [(5, 2**128 - 1)], id="from the start"),
        pytest.param([(2, 4), (4, 6), (9, 11)], [(0, 2), (6, 9), (11, 2**128 - 1)], id="several"),
        pytest.param([(0, 9), (0, 3), (4, 5)], [(9, 2**128 - 1)], id="of several tables"),
    ],
)
def test_gaps_are_the_ids_without_partition(
    ranges: list[tuple[int, int]], gaps: list[tuple[int, int]]
) -> None:
    found = gaps_between((_id(low), _id(high)) for low, high in ranges)
    assert found == [Range(_id(low), _id(high)) for low, high in gaps]

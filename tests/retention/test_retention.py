"""The end of data and of records, as ticks bring it about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.files.model import Purpose
from lowtide.retention.store import RetentionStore
from tests.retention.days import (
    DAY,
    KEPT,
    active,
    aged,
    by_days,
    day,
    ended,
    partitions,
    retention,
    rows,
    run,
)
from tests.worlds import World, together

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from tests.conftest import Database

EMPTY = {"requests": 0, "results": 0, "custom_ids": 0, "request_events": 0, "dead_letters": 0}
FULL = {"requests": 3, "results": 3, "custom_ids": 3, "request_events": 1, "dead_letters": 1}
KEPT_DAYS = KEPT / DAY


@pytest.fixture
def days(database: Database) -> World:
    """A world in which every day has its own partitions."""
    return by_days(database)


def test_data_past_retention_goes_and_the_batch_stays(days: World) -> None:
    batch, other = ended(days, KEPT_DAYS + 1), ended(days, KEPT_DAYS - 1)
    before = days.row(batch)
    assert rows(days, batch) == FULL
    run(days)
    after = days.row(batch)
    assert (after.data_ended_at is not None, after.data_deleted) == (True, True)
    assert rows(days, batch) == EMPTY
    assert day(KEPT_DAYS + 1) not in partitions(days)
    changed = {"data_ended_at", "data_deleted", "tallies_folded"}
    assert {
        name for name, value in after._mapping.items() if value != before._mapping[name]
    } == changed
    assert rows(days, other) == FULL
    assert days.row(other).data_ended_at is None


def test_data_ends_before_it_is_deleted(days: World) -> None:
    """Those who read it at this moment have a minute."""
    batch = ended(days, KEPT_DAYS + 1)
    retention(days).end_data()
    assert days.row(batch).data_ended_at is not None
    assert rows(days, batch) == FULL
    aged(days)
    retention(days).end_data()
    assert rows(days, batch) == EMPTY


@pytest.mark.parametrize(
    ("of_tenant", "of_batch", "days_ago", "is_over"),
    [
        pytest.param(None, None, KEPT_DAYS - 0.1, False, id="setting, not over"),
        pytest.param(None, None, KEPT_DAYS + 0.1, True, id="setting, over"),
        pytest.param(5 * DAY, None, 4.9, False, id="tenant, not over"),
        pytest.param(5 * DAY, None, 5.1, True, id="tenant, over"),
        pytest.param(90 * DAY, None, KEPT_DAYS + 1, False, id="tenant, longer"),
        pytest.param(5 * DAY, 2 * DAY, 1.9, False, id="batch, not over"),
        pytest.param(5 * DAY, 2 * DAY, 2.1, True, id="batch, over"),
        pytest.param(1 * DAY, 40 * DAY, KEPT_DAYS + 1, False, id="batch, longer"),
    ],
)
def test_the_most_specific_retention_counts(
    days: World, of_tenant: int | None, of_batch: int | None, days_ago: float, *, is_over: bool
) -> None:
    tenant = days.tenant("t")
    with days.database.engine("operator").begin() as connection:
        connection.exec_driver_sql(
            "UPDATE tenants SET batch_retention = %s WHERE name = 't'", (of_tenant,)
        )
    batch = ended(days, days_ago, tenant=tenant, output_expires_after=of_batch)
    run(days)
    assert (days.row(batch).data_ended_at is not None) == is_over
    assert rows(days, batch) == (EMPTY if is_over else FULL)


def test_active_batch_has_no_retention(days: World) -> None:
    batch = active(days, KEPT_DAYS + 100, output_expires_after=3600)
    run(days)
    assert rows(days, batch)["requests"] == 3


def test_output_files_end_with_the_data(days: World) -> None:
    batch, other = ended(days, KEPT_DAYS + 1), ended(days, 1)
    files = [days.file(purpose=Purpose.BATCH_OUTPUT).id for _ in range(4)]
    for owner, output, error in ((batch, *files[:2]), (other, *files[2:])):
        days.run(
            "UPDATE batches SET output_file_id = :output, error_file_id = :error WHERE id = :batch",
            batch=owner, output=output, error=error,
        )  # fmt: skip
    run(days)
    days.ticks.orphans(10)
    left = {row.id for row in days.rows("SELECT id FROM files WHERE purpose = 'batch_output'")}
    assert left == set(files[2:])


def test_partition_waits_two_days_for_its_last_batch(days: World) -> None:
    batch, other = (
        ended(days, KEPT_DAYS + 1),
        ended(days, KEPT_DAYS + 1, output_expires_after=90 * DAY),
    )
    run(days)
    assert rows(days, batch) == FULL
    assert not days.row(batch).data_deleted
    aged(days, seconds=2 * DAY)
    run(days)
    assert rows(days, batch) == EMPTY
    assert days.row(batch).data_deleted
    assert rows(days, other) == FULL
    days.run("UPDATE batches SET output_expires_after = 1 WHERE id = :batch", batch=other)
    run(days)
    assert day(KEPT_DAYS + 1) not in partitions(days)


def test_rows_are_deleted_in_sets(days: World, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ended(days, KEPT_DAYS + 1, lines=950)
    other = active(days, KEPT_DAYS + 1)
    days.run("UPDATE dead_letters SET error_code = 'x'")
    run(days)
    aged(days, seconds=3 * DAY)
    sets: list[int] = []
    delete = RetentionStore.delete_requests

    def counted(*arguments: Any) -> int | None:
        sets.append(arguments[-1])
        return delete(*arguments)

    monkeypatch.setattr(RetentionStore, "delete_requests", counted)
    run(days)
    assert len(sets) > 2
    assert sets[0] == 100
    assert rows(days, batch) == EMPTY
    assert rows(days, other)["requests"] == 3


def test_records_end_after_their_data(days: World) -> None:
    _, other = ended(days, 401), ended(days, 399)
    run(days)
    for table, column in (
        ("batches", "id"), ("tallies", "batch_id"), ("batch_terms", "batch_id"), ("segments", "batch_id"),
    ):  # fmt: skip
        found = {row[0] for row in days.rows(f"SELECT {column} FROM {table}")}  # noqa: S608
        assert found == {other}


def test_record_stays_while_its_data_does(days: World) -> None:
    batch = ended(days, 500, output_expires_after=600 * DAY)
    run(days)
    assert days.row(batch).completed == 2


def test_tallies_of_an_ended_batch_are_one_row_per_pool(days: World) -> None:
    batch, running = ended(days, 1), active(days, 1)
    days.escalate(running, 1)
    days.run(
        "INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, escalated, interrupted) "
        "VALUES (:batch, 'spot', :nil, :nil, 2, 1), (:batch, 'dedicated', :lease, :nil, 1, 3)",
        batch=batch, nil=DEFAULT_TENANT, lease=new_id(),
    )  # fmt: skip
    before, open_before = (
        days.row(batch),
        days.rows("SELECT * FROM tallies WHERE batch_id = :batch", batch=running),
    )
    retention(days).fold()
    found = days.rows("SELECT * FROM tallies WHERE batch_id = :batch ORDER BY pool", batch=batch)
    assert [(row.pool, row.completed, row.failed, row.escalated) for row in found] == [
        ("dedicated", 0, 0, 1), ("spot", 2, 1, 2),
    ]  # fmt: skip
    after = days.row(batch)
    assert {**after._mapping, "tallies_folded": False} == {**before._mapping}
    assert days.rows("SELECT * FROM tallies WHERE batch_id = :batch", batch=running) == open_before


def test_backlog_of_the_search_index_ends(days: World) -> None:
    batch = ended(days, KEPT_DAYS + 1)
    days.run(
        "INSERT INTO search_backlog VALUES (:batch, :tenant)", batch=batch, tenant=DEFAULT_TENANT
    )
    run(days)
    assert days.value("SELECT count(*) FROM search_backlog") == 0


def test_batch_that_was_rejected_ends_too(days: World) -> None:
    batch = days.new_batch()
    days.run(
        "UPDATE batches SET status = 'failed', failed_at = now() - interval '401 days' WHERE id = :batch",
        batch=batch,
    )
    run(days)
    # Its partition, of today, is not gone, but there is nothing in it either.
    aged(days, seconds=3 * DAY)
    run(days)
    assert days.value("SELECT count(*) FROM batches") == 0


def test_backlog_names_what_is_due(days: World) -> None:
    store = RetentionStore(days.worker)
    ended(days, KEPT_DAYS + 2)
    ended(days, 3, output_expires_after=DAY)
    ended(days, 1)
    found = store.backlog(KEPT, 10)
    assert found.batches == 2
    assert found.seconds == pytest.approx(2 * DAY, abs=60)
    run(days)
    assert store.backlog(KEPT, 10).batches == 0
    assert store.backlog(KEPT, 10).seconds == 0


class Killed(Exception):
    """The process ends before a statement."""


@pytest.fixture
def dying(days: World) -> Iterator[tuple[Engine, list[int]]]:
    """A worker's engine, and how many statements it may run until it dies."""
    engine, left = days.own_engine("worker"), [10**9]

    def on_execute(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def on_commit(_: Any) -> None:
        on_execute()

    event.listen(engine, "before_cursor_execute", on_execute)
    event.listen(engine, "commit", on_commit)
    yield engine, left
    event.remove(engine, "before_cursor_execute", on_execute)
    event.remove(engine, "commit", on_commit)


def test_death_at_any_statement_leaves_nothing_behind(
    days: World, dying: tuple[Engine, list[int]]
) -> None:
    engine, left = dying
    gone = ended(days, 402)
    alone = ended(days, KEPT_DAYS + 5)
    overdue, other = ended(days, KEPT_DAYS + 8), active(days, KEPT_DAYS + 8)
    days.run(
        "UPDATE batches SET data_ended_at = now() - interval '3 days' WHERE id = :batch",
        batch=overdue,
    )
    deaths = 0
    while True:
        left[0] = deaths
        try:
            run(days, engine)
        except Killed:
            deaths += 1
        else:
            break
        usage = days.rows(
            "SELECT id, tallied_completed, tallied_failed FROM batch_states WHERE id = ANY(:ids)",
            ids=[gone, alone, overdue],
        )
        assert all(tuple(row)[1:] == (2, 1) for row in usage)
    assert deaths > 20
    left[0] = 10**9
    for batch in (alone, overdue):
        assert rows(days, batch) == EMPTY
        assert days.row(batch).data_deleted
    assert [
        row.id for row in days.rows("SELECT id FROM batches WHERE id = :batch", batch=gone)
    ] == []
    assert rows(days, other)["requests"] == 3
    assert {day(402), day(KEPT_DAYS + 5)}.isdisjoint(partitions(days))


def test_concurrent_ticks_do_no_harm(days: World) -> None:
    batches = [ended(days, KEPT_DAYS + 1 + n % 3) for n in range(6)]
    kept = ended(days, KEPT_DAYS + 1, output_expires_after=90 * DAY)
    together(*[lambda: run(days)] * 3)
    aged(days, seconds=3 * DAY)
    together(*[lambda: run(days)] * 3)
    for batch in batches:
        assert rows(days, batch) == EMPTY
        assert (days.row(batch).completed, days.row(batch).data_deleted) == (2, True)
    assert rows(days, kept) == FULL


def test_first_partition_of_a_migrated_database_is_deleted_row_by_row(database: Database) -> None:
    """It ends with the day of the migration, which is today: only later is it dropped."""
    world = World(database)
    batch, other = ended(world, KEPT_DAYS + 1), ended(world, 1)
    run(world)
    aged(world, seconds=3 * DAY)
    run(world)
    assert rows(world, batch) == EMPTY
    assert rows(world, other) == FULL

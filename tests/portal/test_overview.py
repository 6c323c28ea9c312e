"""The read model, on a real database."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.batches.model import BatchStatus
from lowtide.core.errors import Unavailable
from lowtide.core.ids import BatchId
from lowtide.core.pools import Pool
from lowtide.database.connections import connect
from lowtide.status.overview import RECENT, TOTALS, OverviewStore, PoolLoad, Totals, pools_of
from tests.portal.seeds import (
    SeedBatch,
    add_batch,
    add_claimed,
    add_old_batches,
    add_queued,
    add_worker,
)

if TYPE_CHECKING:
    from lowtide.status.overview import Overview
    from tests.conftest import Database

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def _read(database: Database, recent: int = 20) -> Overview:
    return OverviewStore(database.engine("operator")).read(recent=recent)


def test_an_empty_installation(database: Database) -> None:
    overview = _read(database)
    assert overview.totals == Totals(0, 0, 0, 0, 0, 0)
    assert overview.pools == (PoolLoad(Pool.SPOT, 0, 0, 0), PoolLoad(Pool.DEDICATED, 0, 0, 0))
    assert overview.recent == ()


def test_totals_count_states_and_the_last_day(database: Database) -> None:
    worker = database.engine("worker")
    for seed in (
        SeedBatch(status=BatchStatus.VALIDATING),
        SeedBatch(status=BatchStatus.IN_PROGRESS, at_risk=True),
        SeedBatch(status=BatchStatus.FINALIZING),
        SeedBatch(status=BatchStatus.CANCELLING),
        SeedBatch(status=BatchStatus.COMPLETED),
        SeedBatch(status=BatchStatus.COMPLETED, age=2 * DAY, took=DAY + HOUR),
        SeedBatch(status=BatchStatus.COMPLETED, age=2 * DAY, took=DAY - HOUR),
        SeedBatch(status=BatchStatus.FAILED),
        SeedBatch(status=BatchStatus.EXPIRED),
        SeedBatch(status=BatchStatus.EXPIRED, age=3 * DAY),
        SeedBatch(status=BatchStatus.CANCELLED),
    ):
        add_batch(worker, seed)
    assert _read(database).totals == Totals(
        batches=11, in_progress=4, at_risk=1, completed=2, failed=2, cancelled=1
    )


def test_pools_count_lines_and_living_workers(database: Database) -> None:
    worker = database.engine("worker")
    batch = add_batch(worker, SeedBatch())
    add_queued(worker, batch, "spot", range(1, 8))
    add_queued(worker, batch, "dedicated", range(8, 11))
    add_claimed(worker, batch, "spot", range(11, 13))
    add_worker(worker, "spot")
    add_worker(worker, "spot", expires_in=-1)
    add_worker(worker, "dedicated")
    assert _read(database).pools == (
        PoolLoad(Pool.SPOT, queued=7, running=2, workers=1),
        PoolLoad(Pool.DEDICATED, queued=3, running=0, workers=1),
    )


def test_recent_batches_are_the_newest_with_their_tallies(database: Database) -> None:
    worker = database.engine("worker")
    ids = [
        add_batch(worker, SeedBatch(age=HOUR * age, completed=60, failed=2, interrupted=7))
        for age in (3, 1, 2)
    ]
    recent = _read(database, recent=2).recent
    assert [batch.id for batch in recent] == [BatchId(ids[1]), BatchId(ids[2])]
    assert (recent[0].completed, recent[0].failed, recent[0].interruptions) == (60, 2, 7)


@pytest.mark.parametrize(
    ("seed", "pools"),
    [
        pytest.param(SeedBatch(), (Pool.SPOT,), id="all on spot"),
        pytest.param(SeedBatch(total=0, status=BatchStatus.VALIDATING), (Pool.SPOT,), id="new"),
        pytest.param(SeedBatch(total=0, status=BatchStatus.FAILED), (), id="never split"),
        pytest.param(SeedBatch(escalated=40), (Pool.SPOT, Pool.DEDICATED), id="some escalated"),
        pytest.param(SeedBatch(escalated=100), (Pool.DEDICATED,), id="all escalated"),
    ],
)
def test_pools_of_a_batch(database: Database, seed: SeedBatch, pools: tuple[Pool, ...]) -> None:
    add_batch(database.engine("worker"), seed)
    assert pools_of(_read(database).recent[0]) == pools


def test_recent_batches_come_from_the_key_in_order(database: Database) -> None:
    add_old_batches(database)
    plan = _plan(database, RECENT.replace(":limit", "20"))
    assert "Index Scan Backward using batches_pkey" in plan
    assert "Sort" not in plan


def test_active_batches_come_from_their_index(database: Database) -> None:
    add_old_batches(database)
    assert "batches_active" in _plan(database, TOTALS)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("postgresql://lowtide_operator:wrong@{host}", id="wrong password"),
        pytest.param("postgresql://lowtide_operator:test@127.0.0.1:1/none", id="nobody there"),
        pytest.param("postgresql://lowtide_operator:test@{server}/postgres", id="no schema"),
    ],
)
def test_what_cannot_be_read_is_unavailable(database: Database, url: str) -> None:
    host = database.url("operator").rpartition("@")[2]
    engine = connect(url.format(host=host, server=host.partition("/")[0]), pool_size=1)
    try:
        with pytest.raises(Unavailable):
            OverviewStore(engine).read(recent=1)
    finally:
        engine.dispose()


def _plan(database: Database, statement: str) -> str:
    with database.engine("operator").connect() as connection:
        return "\n".join(connection.execute(text(f"EXPLAIN {statement}")).scalars())

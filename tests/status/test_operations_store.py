"""The read model of operations, on a real database."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from lowtide.batches.model import BatchStatus
from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId
from lowtide.core.pools import Pool
from lowtide.database.connections import connect
from lowtide.scheduler.pauses import PauseStore
from lowtide.status.operations import WORK, OperationsStore, Work
from tests.plans import plan_nodes
from tests.portal.seeds import (
    SeedBatch,
    add_batch,
    add_claimed,
    add_old_batches,
    add_queued,
    add_worker,
)

if TYPE_CHECKING:
    from lowtide.status.operations import Operations
    from tests.conftest import Database

HOUR = timedelta(hours=1)


def _read(database: Database) -> Operations:
    return OperationsStore(database.engine("operator")).read()


def test_an_empty_installation(database: Database) -> None:
    found = _read(database)
    assert (found.loads, found.work, found.pauses, found.workers) == ((), (), (), {})
    assert (found.events_waiting, found.oldest_event) == (0, None)
    assert (found.planned, found.ticked_at) == (None, None)
    assert found.server_version[0].isdigit()
    assert found.schema_version.isdigit()


def test_loads_by_tenant_and_pool(database: Database) -> None:
    worker = database.engine("worker")
    batch = add_batch(worker, SeedBatch())
    add_queued(worker, batch, "spot", range(1, 8))
    add_queued(worker, batch, "dedicated", range(8, 10))
    add_claimed(worker, batch, "spot", range(10, 13))
    add_worker(worker, "spot")
    add_worker(worker, "spot", expires_in=-1)
    found = _read(database)
    spot, dedicated = found.loads
    assert (spot.tenant, spot.name, spot.pool) == (DEFAULT_TENANT, "default", Pool.SPOT)
    assert (spot.queued, spot.running) == (7, 3)
    assert spot.oldest is not None
    assert spot.oldest <= found.at
    assert (dedicated.pool, dedicated.queued, dedicated.running) == (Pool.DEDICATED, 2, 0)
    assert found.workers == {Pool.SPOT: 1}


def test_work_is_of_batches_that_are_open_or_have_just_ended(database: Database) -> None:
    worker = database.engine("worker")
    open_ = add_batch(worker, SeedBatch(completed=60, failed=2, on_dedicated=10, interrupted=7))
    ended = add_batch(
        worker, SeedBatch(status=BatchStatus.COMPLETED, completed=9, age=HOUR, took=HOUR)
    )
    add_batch(worker, SeedBatch(status=BatchStatus.COMPLETED, completed=9, age=2 * HOUR, took=HOUR))
    work = [each for each in _read(database).work if each.done]
    assert set(work) == {
        Work(BatchId(open_), Pool.SPOT, 52, 7),
        Work(BatchId(open_), Pool.DEDICATED, 10, 0),
        Work(BatchId(ended), Pool.SPOT, 9, 0),
    }


def test_pauses(database: Database) -> None:
    engine = database.engine("operator")
    pause = PauseStore(engine).pause(Pool.SPOT, "ana")
    found = _read(database)
    assert found.pauses == (pause,)
    assert (found.pause(Pool.SPOT), found.pause(Pool.DEDICATED)) == (pause, None)


def test_a_reading_is_as_many_statements_however_much_there_is(database: Database) -> None:
    engine = database.engine("operator")
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    OperationsStore(engine).read()
    before = len(statements)
    for _ in range(5):
        add_batch(database.engine("worker"), SeedBatch())
    OperationsStore(engine).read()
    assert (before, len(statements)) == (5, 10)


def test_ended_batches_are_looked_up_by_index(database: Database) -> None:
    add_old_batches(database)
    nodes = plan_nodes(database.engine("operator"), WORK)
    scans = [node for node in nodes if node.get("Relation Name") in {"batches", "tallies"}]
    assert scans
    assert all("Seq" not in node["Node Type"] for node in scans)


def test_what_cannot_be_read_is_unavailable(database: Database) -> None:
    host = database.url("operator").rpartition("@")[2]
    engine = connect(f"postgresql://lowtide_operator:wrong@{host}", pool_size=1)
    try:
        with pytest.raises(Unavailable):
            OperationsStore(engine).read()
    finally:
        engine.dispose()

"""The read model of health, on a real database."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, text

from lowtide.batches.model import BatchStatus
from lowtide.core.errors import Unavailable
from lowtide.core.pools import Pool
from lowtide.database.connections import connect
from lowtide.engines.breaker import BreakerState
from lowtide.status.evidence import STEPS, EvidenceStore
from lowtide.status.last_seen import Component, LastSeenStore, Observation
from tests.plans import plan_nodes
from tests.portal.seeds import SeedBatch, add_batch, add_old_batches, add_worker

if TYPE_CHECKING:
    from lowtide.status.evidence import Evidence
    from tests.conftest import Database

MINUTE = timedelta(minutes=1)


def _read(database: Database) -> Evidence:
    return EvidenceStore(database.engine("operator")).read()


def test_an_empty_installation(database: Database) -> None:
    found = _read(database)
    assert (dict(found.last_seen), dict(found.crews)) == ({}, {})
    assert (found.unsplit.batches, found.unsplit.since) == (0, None)
    assert (found.unfinalized.batches, found.unfinalized.since) == (0, None)


def test_what_waits_for_whom_and_who_was_seen(database: Database) -> None:
    worker = database.engine("worker")
    for minutes in (9, 4):
        add_batch(worker, SeedBatch(status=BatchStatus.VALIDATING, age=minutes * MINUTE))
    drained = add_batch(worker, SeedBatch())
    add_batch(worker, SeedBatch())
    add_batch(worker, SeedBatch(status=BatchStatus.COMPLETED))
    with worker.begin() as connection:
        connection.execute(
            text("UPDATE batches SET drained_at = now() - interval '3 minutes' WHERE id = :id"),
            {"id": drained},
        )
        connection.execute(text("UPDATE batches SET drained_at = now() WHERE status = 'completed'"))
    add_worker(worker, "spot")
    add_worker(worker, "spot")
    add_worker(worker, "dedicated", expires_in=-1)
    with worker.begin() as connection:
        connection.execute(
            text(
                "UPDATE workers SET engine_state = 'open', engine_reason = 'HTTP 503', "
                "engine_since = now() - interval '2 minutes' "
                "WHERE id = (SELECT id FROM workers WHERE pool = 'spot' LIMIT 1)"
            )
        )
    glimpses = [Observation(Component.FUNCTION, "split", 60.0, 5.0, "HTTP 500")]
    LastSeenStore(worker).write(glimpses)
    found = _read(database)
    assert found.unsplit.batches == 2
    assert found.unsplit.since is not None
    assert timedelta(minutes=9) <= found.at - found.unsplit.since < timedelta(minutes=10)
    assert found.unfinalized.batches == 1
    assert found.unfinalized.since is not None
    assert 3 * MINUTE <= found.at - found.unfinalized.since < 4 * MINUTE
    assert {pool: crew.workers for pool, crew in found.crews.items()} == {Pool.SPOT: 2}
    [lost] = found.lost_engines
    assert (lost.worker, lost.pool, lost.state, lost.reason) == (
        "host/1",
        Pool.SPOT,
        BreakerState.OPEN,
        "HTTP 503",
    )
    assert 2 * MINUTE <= found.at - lost.since < 3 * MINUTE
    seen = found.last_seen[Component.FUNCTION, "split"]
    assert (seen.fails, seen.problem, seen.last_at) == (True, "HTTP 500", seen.failed_at)


def test_a_reading_is_three_statements(database: Database) -> None:
    engine = database.engine("operator")
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    EvidenceStore(engine).read()
    assert len(statements) == 3


def test_a_database_that_refuses_is_unavailable(database: Database) -> None:
    engine = connect(database.url("operator").replace(database.name, "nowhere"))
    with pytest.raises(Unavailable):
        EvidenceStore(engine).read()


def test_ended_batches_are_not_read(database: Database) -> None:
    add_old_batches(database)
    nodes = plan_nodes(database.engine("operator"), STEPS)
    scans = [node for node in nodes if node.get("Relation Name") == "batches"]
    assert scans
    assert all("Seq" not in node["Node Type"] for node in scans)

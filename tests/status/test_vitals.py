"""What alerts look at, on a real database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.pools import Depth, Pool
from lowtide.status.vitals import EVENTS, LETTERS, RISKY, Vitals, VitalsStore
from tests.loads import fill
from tests.plans import plan_nodes
from tests.portal.seeds import SeedBatch, add_batch, add_claimed, add_queued, add_worker

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.worlds import World


def test_an_empty_installation(database: Database) -> None:
    assert VitalsStore(database.engine("worker")).read() == Vitals((), (), {}, {}, 0, 0.0)


def test_open_batches_by_tenant_and_pool(database: Database) -> None:
    worker = database.engine("worker")
    safe = add_batch(worker, SeedBatch(total=12, completed=2))
    add_batch(worker, SeedBatch(total=0, at_risk=True))
    add_queued(worker, safe, "spot", range(1, 6))
    add_queued(worker, safe, "dedicated", range(6, 8))
    add_claimed(worker, safe, "spot", range(8, 11))
    add_worker(worker, "spot")
    add_worker(worker, "spot", expires_in=-1)
    with worker.begin() as connection:
        connection.execute(
            text("UPDATE queue SET available_at = now() - interval '5 min' WHERE line = 3")
        )
        connection.execute(
            text("UPDATE queue SET available_at = now() + interval '5 min' WHERE line > 5")
        )
    found = VitalsStore(worker).read()
    (tenant,) = found.tenants
    assert (tenant.name, tenant.batches, tenant.at_risk) == ("default", 2, 1)
    assert tenant.depths == {Pool.SPOT: Depth(5, 3), Pool.DEDICATED: Depth(2, 0)}
    assert 300 <= tenant.oldest[Pool.SPOT] < 360
    assert tenant.oldest[Pool.DEDICATED] == 0  # waits out a delay
    assert found.workers == {Pool.SPOT: 1}
    (risky,) = found.risky
    assert (risky.tenant, 80_000 < risky.left < 86_400) == ("default", True)


def test_events_that_nobody_took_and_letters_that_nobody_opened(world: World) -> None:
    batch = fill(world, 3)
    world.run(
        "INSERT INTO outbox (id, tenant_id, type, subject, data, created_at) SELECT gen_random_uuid(), "
        "tenant_id, 't', 's', '{}', now() - interval '90 s' FROM queue WHERE batch_id = :batch",
        batch=batch,
    )
    world.run(
        "INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, state, ended_at) "
        "SELECT batch_id, line, tenant_id, 5, CASE WHEN line = 1 THEN 'discarded' ELSE 'open' END, "
        "CASE WHEN line = 1 THEN now() END FROM queue WHERE batch_id = :batch",
        batch=batch,
    )
    found = VitalsStore(world.worker).read()
    assert found.events == 3
    assert 90 <= found.oldest_event < 150
    assert found.open_letters == {"default": 2}


@pytest.mark.parametrize(
    ("statement", "table"),
    [(EVENTS, "outbox"), (LETTERS, "dead_letters"), (RISKY, "batches")],
    ids=["events", "letters", "risky"],
)
def test_a_look_does_not_grow_with_what_is_stored(world: World, statement: str, table: str) -> None:
    batch = fill(world, 5000)
    world.run(
        "INSERT INTO outbox (id, tenant_id, type, subject, data) SELECT gen_random_uuid(), tenant_id,"
        " 't', 's', '{}' FROM queue WHERE batch_id = :batch",
        batch=batch,
    )
    world.run(
        "INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, state, ended_at) "
        "SELECT batch_id, line, tenant_id, 5, 'discarded', now() FROM queue",
    )
    world.run(
        "INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, "
        "completion_window, status, created_at, deadline, completed_at) SELECT gen_random_uuid(), "
        "tenant_id, 'u', gen_random_uuid(), 'i', '/v1/embeddings', '24h', 'completed', now(), now(), "
        "now() FROM queue"
    )
    with world.database.engine("owner").begin() as connection:
        connection.execute(text(f"ANALYZE {table}"))
    nodes = plan_nodes(world.worker, statement, most=10)
    read = [node for node in nodes if node.get("Relation Name") == table]
    bounded = {"outbox": 1, "dead_letters": 0, "batches": 0}[table]  # a LIMIT may end a scan
    assert read
    assert sum(node["Node Type"] == "Seq Scan" for node in read) <= bounded

"""A database in which every day has its own partitions, and batches of earlier days."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, BatchId, TenantId, uuid7
from lowtide.core.pools import Pool
from lowtide.retention.partitions import PartitionStore
from lowtide.retention.service import Retention, RetentionRules
from lowtide.retention.store import RetentionStore
from tests.worlds import World, done

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.conftest import Database

PARTITIONED = ("requests", "results", "custom_ids", "request_events", "dead_letters")
DAY = 86_400
KEPT = 30 * DAY
RULES = RetentionRules(data_kept=KEPT, records_kept=400 * DAY)


def by_days(database: Database) -> World:
    """Return a world without the first partition, which holds all days before the migration."""
    world = World(database)
    with database.engine("owner").begin() as connection:
        names = connection.execute(
            text("SELECT name FROM data_partitions WHERE low IS NULL")
        ).scalars()
        connection.execute(text(f"DROP TABLE {', '.join(names)}"))
    retention(world).make_partitions()
    return world


def retention(
    world: World, engine: Engine | None = None, rules: RetentionRules = RULES
) -> Retention:
    """Return the retention of a tick."""
    on = engine or world.worker
    return Retention(PartitionStore(on), RetentionStore(on), rules)


def run(world: World, engine: Engine | None = None, rules: RetentionRules = RULES) -> None:
    """Do what a tick does, a minute after the data ended."""
    steps = retention(world, engine, rules)
    steps.make_partitions()
    steps.fold()
    steps.end_data()
    aged(world)
    steps.end_data()
    steps.end_records()


def aged(world: World, *, seconds: float = 61) -> None:
    """Let time pass since data ended."""
    world.run(
        "UPDATE batches SET data_ended_at = data_ended_at - make_interval(secs => :seconds) "
        "WHERE data_ended_at > now() - make_interval(secs => :seconds)",
        seconds=seconds,
    )


def new_id_of(days_ago: float) -> BatchId:
    """Return the id of a batch of an earlier day."""
    return BatchId(uuid7(datetime.now(UTC) - timedelta(days=days_ago), os.urandom))


def ended(
    world: World,
    days_ago: float,
    *,
    lines: int = 3,
    tenant: TenantId = DEFAULT_TENANT,
    **changes: Any,
) -> BatchId:
    """Return a batch that was created, completed by two workers and indexed on an earlier day.

    Its last request failed, and is a dead letter.
    """
    batch = active(world, days_ago, lines=lines, tenant=tenant, **changes)
    for share in (1, lines):
        lease = world.queue.open_lease(Pool.SPOT, "w")
        claims = world.queue.claim(lease, Pool.SPOT, share)
        finished = [
            done(claim, succeeded=claim.line < lines, dead_letter=claim.line == lines)
            for claim in claims
        ]
        world.queue.settle(lease, finished, [])
    world.run(
        "UPDATE batches SET status = 'completed', completed = :lines - 1, failed = 1, "
        "completed_at = now() - make_interval(secs => :ago) WHERE id = :batch",
        batch=batch,
        ago=days_ago * DAY,
        lines=lines,
    )
    return batch


def active(
    world: World,
    days_ago: float,
    *,
    lines: int = 3,
    tenant: TenantId = DEFAULT_TENANT,
    **changes: Any,
) -> BatchId:
    """Return a batch that was created on an earlier day, and still runs."""
    batch = world.new_batch(tenant, id=new_id_of(days_ago), **changes)
    assert world.split(batch, lines)
    world.indexer.index(limit=10**6)
    return batch


def rows(world: World, batch: BatchId) -> dict[str, int]:
    """Return how many rows a batch has in each partitioned table."""
    return {
        table: world.value(f"SELECT count(*) FROM {table} WHERE batch_id = :batch", batch=batch)  # noqa: S608
        for table in PARTITIONED
    }


def partitions(world: World) -> set[str]:
    """Return the days with partitions, as in their names."""
    return {name[-8:] for (name,) in world.rows("SELECT name FROM data_partitions")}


def day(days_ago: float) -> str:
    """Return a day as in the names of partitions."""
    return f"{datetime.now(UTC) - timedelta(days=days_ago):%Y%m%d}"

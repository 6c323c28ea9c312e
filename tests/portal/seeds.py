"""Rows as functions and workers write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from lowtide.batches.model import BatchStatus
from lowtide.core.ids import DEFAULT_TENANT, uuid7
from lowtide.core.pools import FleetPool, Pool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from tests.conftest import Database

_NEVER_RUN = UUID(int=0)
_STAMPS = {
    "in_progress": ("in_progress_at",),
    "finalizing": ("in_progress_at", "finalizing_at"),
    "cancelling": ("in_progress_at", "cancelling_at"),
    "completed": ("in_progress_at", "finalizing_at", "completed_at"),
    "expired": ("in_progress_at", "expired_at"),
    "cancelled": ("cancelling_at", "cancelled_at"),
    "failed": ("failed_at",),
}


@dataclass
class SeedBatch:
    """One batch; `age` and `window` are from its creation, `took` until its last state.

    `parts` are the requests by fleet of a batch of several; each fleet's model is named like it.
    """

    user: str = "ana"
    status: BatchStatus = BatchStatus.IN_PROGRESS
    age: timedelta = timedelta(minutes=5)
    window: timedelta = timedelta(hours=24)
    took: timedelta = timedelta(minutes=4)
    model: str | None = "llama-3.1-8b"
    fleet: str = "default"
    total: int = 100
    completed: int = 0
    failed: int = 0
    on_dedicated: int = 0
    interrupted: int = 0
    escalated: int = 0
    at_risk: bool = False
    parts: Mapping[str, int] = field(default_factory=dict)


def add_batch(engine: Engine, seed: SeedBatch) -> UUID:
    """Store a batch with its tallies; returns its id."""
    created = datetime.now(UTC) - seed.age
    batch = uuid7(created, lambda size: uuid4().bytes[:size])
    stamps = dict.fromkeys(_STAMPS.get(seed.status.value, ()), created + seed.took)
    values = {
        "id": batch,
        "tenant_id": DEFAULT_TENANT,
        "user_id": seed.user,
        "input_file_id": uuid4(),
        "input_key": "input",
        "endpoint": "/v1/chat/completions",
        "model": None if seed.parts else seed.model,
        "fleet": None if seed.parts else seed.fleet,
        "fleet_of_model": list(seed.parts) or None,
        "completion_window": "24h",
        "status": seed.status.value,
        "created_at": created,
        "deadline": created + seed.window,
        "at_risk": seed.at_risk,
        "total": seed.total,
        "completed": seed.completed,
        "failed": seed.failed,
        **stamps,
    }
    with engine.begin() as connection:
        connection.execute(
            text(
                f"INSERT INTO batches ({', '.join(values)}) "  # noqa: S608 - constant names
                f"VALUES ({', '.join(f':{name}' for name in values)})"
            ),
            values,
        )
        for fleet, lines in seed.parts.items():
            connection.execute(
                text(
                    "INSERT INTO batch_fleets (batch_id, fleet, tenant_id, model, lines, split) "
                    "VALUES (:batch, :fleet, :tenant, :fleet, :lines, :lines)"
                ),
                {"batch": batch, "fleet": fleet, "tenant": DEFAULT_TENANT, "lines": lines},
            )
        for pool, completed, failed, escalated in (
            ("spot", seed.completed - seed.on_dedicated, seed.failed, 0),
            ("dedicated", seed.on_dedicated, 0, seed.escalated),
        ):
            connection.execute(
                text(
                    "INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed, failed, "
                    "interrupted, escalated) VALUES (:batch, :pool, :lease, :tenant, :completed, "
                    ":failed, :interrupted, :escalated)"
                ),
                {
                    "batch": batch,
                    "pool": pool,
                    "lease": _NEVER_RUN,
                    "tenant": DEFAULT_TENANT,
                    "completed": completed,
                    "failed": failed,
                    "interrupted": seed.interrupted if pool == "spot" else 0,
                    "escalated": escalated,
                },
            )
    return batch


def add_queued(
    engine: Engine, batch: UUID, pool: str, lines: range, *, fleet: str = "default"
) -> None:
    """Queue requests of a batch."""
    _add_requests(
        engine,
        "INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, lines, pool, "
        "fleet) SELECT :batch, :tenant, now(), now(), now(), line, "
        "int4multirange(int4range(line, line + 1)), :pool, :fleet",
        batch,
        FleetPool(fleet, Pool(pool)),
        lines,
    )


def add_claimed(
    engine: Engine, batch: UUID, pool: str, lines: range, *, fleet: str = "default"
) -> None:
    """Store claims of requests of a batch."""
    _add_requests(
        engine,
        "INSERT INTO claimed_runs (batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, line, "
        "lines, attempts, interruptions, lost_leases, escalated, pool, fleet) "
        "SELECT :batch, :tenant, :lease, now(), now(), now(), line, "
        "int4multirange(int4range(line, line + 1)), 0, 0, 0, false, :pool, :fleet",
        batch,
        FleetPool(fleet, Pool(pool)),
        lines,
    )


def add_worker(
    engine: Engine, pool: str, *, expires_in: int = 3600, fleet: str = "default"
) -> UUID:
    """Register a worker whose lease ends in so many seconds; return its lease."""
    lease = uuid4()
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO workers (id, pool, name, fleet, expires_at) VALUES (:id, :pool, "
                "'host/1', :fleet, now() + make_interval(secs => :expires_in))"
            ),
            {"id": lease, "pool": pool, "fleet": fleet, "expires_in": expires_in},
        )
    return lease


def add_fleets(engine: Engine, *names: str) -> None:
    """Record fleets that are no longer declared: they are shown while they have requests."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO fleets (name) SELECT unnest(cast(:names AS text[])) "
                "ON CONFLICT DO NOTHING"
            ),
            {"names": list(names)},
        )


def add_samples(engine: Engine, *, minutes: int, fleet: str = "default") -> None:
    """Store samples of both pools for each of the last minutes, with a gap of ten in the middle."""
    with engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO pool_samples (at, fleet, pool, queued, running, oldest_age, desired, live,
                  seconds, done, interrupted, replica_seconds)
                SELECT date_trunc('minute', now()) - n * interval '1 minute', :fleet, pool, n, 9, 30, 2, 1, 60, 120 * n, 1, 30
                FROM generate_series(0, :minutes) n, unnest(ARRAY['spot', 'dedicated']) pool
                WHERE n NOT BETWEEN :minutes / 2 - 5 AND :minutes / 2 + 5
            """),
            {"minutes": minutes, "fleet": fleet},
        )


def _add_requests(engine: Engine, insert: str, batch: UUID, place: FleetPool, lines: range) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(f"{insert} FROM generate_series(cast(:first AS int), :last) line"),
            {
                "batch": batch,
                "tenant": DEFAULT_TENANT,
                "lease": _NEVER_RUN,
                "pool": place.pool.value,
                "fleet": place.fleet,
                "first": lines[0],
                "last": lines[-1],
            },
        )


def empty(owner: Engine, tables: str) -> None:
    """Truncate tables; retries on a deadlock with the reads of an open portal."""
    for retries in reversed(range(10)):
        try:
            with owner.begin() as connection:
                connection.exec_driver_sql(f"TRUNCATE {tables}")
        except DatabaseError as error:
            if "deadlock detected" not in str(error) or not retries:
                raise
        else:
            return


def add_old_batches(database: Database) -> None:
    """Store 10,000 batches that ended long ago, and analyze the table."""
    with database.engine("worker").begin() as connection:
        connection.execute(
            text("""
                INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
                  completion_window, status, created_at, deadline, completed_at)
                SELECT gen_random_uuid(), '00000000-0000-0000-0000-000000000000', 'ana',
                  gen_random_uuid(), 'input', '/v1/embeddings', '24h', 'completed',
                  now() - interval '40 days', now() - interval '39 days', now() - interval '39 days'
                FROM generate_series(1, 10000)
            """)
        )
    with database.engine("owner").begin() as connection:
        connection.execute(text("ANALYZE batches"))

"""Queues, replicas and throughput of the installation."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from lowtide.core.errors import LowtideError, Unavailable
from lowtide.core.ids import BatchId, TenantId
from lowtide.core.pools import Depth, Pool
from lowtide.database.connections import begin
from lowtide.planning.demand import scaled_replicas
from lowtide.scheduler.pauses import read_pauses

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Engine

    from lowtide.core.pools import PoolPause


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """A tenant's queued and running requests in a pool; the first has waited since `oldest`."""

    tenant: TenantId
    name: str
    pool: Pool
    queued: int
    running: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class Work:
    """The requests that a pool has ended and lost to interruptions for one batch so far."""

    batch: BatchId
    pool: Pool
    done: int
    interrupted: int


@dataclass(frozen=True, slots=True)
class Operations:
    """One reading; `at` is the database's time.

    `work` covers batches that are active or have just ended. `planned` is the number of dedicated
    replicas that the last tick planned, at `ticked_at`; None before the first.
    """

    at: datetime
    loads: tuple[TenantLoad, ...]
    work: tuple[Work, ...]
    workers: Mapping[Pool, int]
    planned: int | None
    ticked_at: datetime | None
    events_waiting: int
    oldest_event: datetime | None
    server_version: str
    schema_version: str
    pauses: tuple[PoolPause, ...] = ()

    def pause(self, pool: Pool) -> PoolPause | None:
        """Return the pause of a pool, if there is one."""
        return next((pause for pause in self.pauses if pause.pool is pool), None)

    def queued(self, pool: Pool) -> int:
        """Return the number of queued requests in a pool."""
        return sum(load.queued for load in self.loads if load.pool is pool)

    def running(self, pool: Pool) -> int:
        """Return the number of running requests in a pool."""
        return sum(load.running for load in self.loads if load.pool is pool)

    def oldest_age(self, pool: Pool) -> float:
        """Return the seconds that the first request of a pool has waited; 0 while none waits."""
        since = [load.oldest for load in self.loads if load.pool is pool and load.oldest]
        return max((self.at - min(since)).total_seconds(), 0.0) if since else 0.0


@dataclass(frozen=True, slots=True)
class PoolSample:
    """A pool at one time.

    `oldest_age` is in seconds, `throughput` in requests per second, `interruptions` per minute.
    """

    queued: int
    oldest_age: float
    workers: int
    desired: int
    throughput: float
    interruptions: float


@dataclass(frozen=True, slots=True)
class Sample:
    """All pools at one time."""

    at: datetime
    pools: Mapping[Pool, PoolSample]


def sample_of(before: Operations | None, after: Operations, desired: Mapping[Pool, int]) -> Sample:
    """Return the sample of a reading, with rates since the previous one; 0 without one."""
    seconds = 0.0 if before is None else (after.at - before.at).total_seconds()
    pools = {}
    for pool in Pool:
        done, interrupted = progress(before.work if before else after.work, after.work, pool)
        pools[pool] = PoolSample(
            queued=after.queued(pool),
            oldest_age=after.oldest_age(pool),
            workers=after.workers.get(pool, 0),
            desired=desired.get(pool, 0),
            throughput=done / seconds if seconds > 0 else 0.0,
            interruptions=60 * interrupted / seconds if seconds > 0 else 0.0,
        )
    return Sample(after.at, pools)


def progress(before: Iterable[Work], after: Sequence[Work], pool: Pool) -> tuple[int, int]:
    """Return the requests that a pool ended between two readings, and its interruptions.

    Batches are compared one by one: one missing from `before` is new and starts at 0, one missing
    from `after` is ignored.
    """
    earlier = {work.batch: work for work in before if work.pool is pool}
    done = interrupted = 0
    for work in after:
        if work.pool is pool:
            then = earlier.get(work.batch)
            done += max(work.done - (then.done if then else 0), 0)
            interrupted += max(work.interrupted - (then.interrupted if then else 0), 0)
    return done, interrupted


LOADS = """
SELECT l.pool, l.tenant_id, coalesce(t.name, cast(l.tenant_id AS text)) AS name,
  sum(l.queued)::bigint AS queued, sum(l.running)::bigint AS running, min(l.oldest) AS oldest
FROM (
  SELECT pool, tenant_id, count(*) AS queued, 0 AS running, min(queued_at) AS oldest
  FROM queue GROUP BY pool, tenant_id
  UNION ALL
  SELECT pool, tenant_id, 0, count(*), NULL FROM claims GROUP BY pool, tenant_id
) l LEFT JOIN tenants t ON t.id = l.tenant_id
GROUP BY l.pool, l.tenant_id, t.name
ORDER BY name, l.pool DESC
"""
# Batches are read until 2 minutes after their end, so that their last requests count.
WORK = """
SELECT t.batch_id, t.pool, sum(t.completed + t.failed)::bigint AS done,
  sum(t.interrupted)::bigint AS interrupted
FROM (
  SELECT id FROM batches
  WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
  UNION ALL
  SELECT id FROM batches WHERE status IN ('completed', 'failed', 'expired', 'cancelled')
    AND coalesce(completed_at, failed_at, expired_at, cancelled_at) > now() - interval '2 minutes'
) b CROSS JOIN LATERAL (
  SELECT batch_id, pool, completed, failed, interrupted FROM tallies
  WHERE batch_id = b.id OFFSET 0) t
GROUP BY t.batch_id, t.pool
"""
STATE = """
SELECT now() AS at, w.planned, w.ticked_at, o.events_waiting, o.oldest_event,
  current_setting('server_version') AS server_version,
  (SELECT min(version_num) FROM alembic_version) AS schema_version
FROM (SELECT max(replicas) AS planned, max(at) AS ticked_at FROM wanted_replicas) w,
  (SELECT count(*) AS events_waiting, min(created_at) AS oldest_event FROM outbox) o
"""
WORKERS = "SELECT pool, count(*) AS workers FROM workers WHERE expires_at > now() GROUP BY pool"

_LOADS, _WORK, _STATE, _WORKERS = map(text, (LOADS, WORK, STATE, WORKERS))


class OperationsStore:
    """Queries for queues, workers and work, as a role with access to every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Operations:
        """Return the state of all tenants' queues and of the pools; raises Unavailable."""
        try:
            with begin(self._engine) as connection:
                return _read(connection)
        except SQLAlchemyError as error:
            # The status pages must survive a missing schema and a refused password.
            raise Unavailable("The database responds, but queries fail.") from error


def _read(connection: Connection) -> Operations:
    def rows(statement: Any) -> Sequence[Any]:
        return connection.execute(statement).all()

    state = connection.execute(_STATE).one()
    return Operations(
        at=state.at,
        loads=tuple(
            TenantLoad(
                TenantId(row.tenant_id),
                row.name,
                Pool(row.pool),
                row.queued,
                row.running,
                row.oldest,
            )
            for row in rows(_LOADS)
        ),
        work=tuple(
            Work(BatchId(row.batch_id), Pool(row.pool), row.done, row.interrupted)
            for row in rows(_WORK)
        ),
        workers={Pool(row.pool): row.workers for row in rows(_WORKERS)},
        planned=state.planned,
        ticked_at=state.ticked_at,
        events_waiting=state.events_waiting,
        oldest_event=state.oldest_event,
        server_version=state.server_version.split()[0],
        schema_version=state.schema_version or "none",
        pauses=read_pauses(connection),
    )


SAMPLE_SECONDS: Final = 15.0
SAMPLES: Final = 240


@dataclass(frozen=True, slots=True)
class ScaleRule:
    """KEDA's rule for a pool: requests per replica, and the maximum of replicas."""

    rows_per_replica: int
    most: int


@dataclass(frozen=True, slots=True)
class OperationsSeen:
    """The last good reading, any error since, and the samples of the last hour, oldest first."""

    reading: Operations | None = None
    problem: str | None = None
    samples: tuple[Sample, ...] = ()


class OperationsWatch:
    """The last reading, and a sample every 15 s for an hour, in this process's memory.

    `look` keeps the last reading when the database fails.
    """

    def __init__(self, source: OperationsStore, rules: Mapping[Pool, ScaleRule]) -> None:
        self._source = source
        self._rules = rules
        self._sampled: Operations | None = None
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._seen = OperationsSeen()

    @property
    def seen(self) -> OperationsSeen:
        """The last reading."""
        return self._seen

    def look(self) -> None:
        """Read the database, or record its error."""
        try:
            reading = self._source.read()
        except LowtideError as error:
            self._seen = OperationsSeen(self._seen.reading, error.message, tuple(self._samples))
            return
        self._sample(reading)
        self._seen = OperationsSeen(reading, None, tuple(self._samples))

    def _sample(self, reading: Operations) -> None:
        before = self._sampled
        if before and (reading.at - before.at).total_seconds() < SAMPLE_SECONDS - 1:
            return
        desired = {pool: self.desired(pool, reading) for pool in Pool}
        self._samples.append(sample_of(before, reading, desired))
        self._sampled = reading

    def desired(self, pool: Pool, reading: Operations) -> int:
        """Return the replicas that KEDA should run: for dedicated at most the planned ones."""
        rule = self._rules[pool]
        return scaled_replicas(
            Depth(reading.queued(pool), reading.running(pool)),
            rule.rows_per_replica,
            most=rule.most,
            planned=reading.planned if pool is Pool.DEDICATED else None,
            paused=reading.pause(pool) is not None,
        )

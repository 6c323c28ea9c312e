"""Pool samples on the database: recorded, trimmed and read."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.batches.model import BatchStatus
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from lowtide.scheduler import samples
from lowtide.scheduler.pauses import PauseStore
from lowtide.scheduler.samples import PoolLevel, SampleRecorder
from lowtide.status import history
from lowtide.status.history import HistoryRange, HistoryStore
from tests.plans import plan_nodes
from tests.portal.seeds import SeedBatch, add_batch, add_worker
from tests.worlds import done, together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.status.history import History, HistoryPoint
    from tests.worlds import World

LEVELS = {
    FleetPool(DEFAULT_FLEET, Pool.SPOT): PoolLevel(7, 3, 2),
    FleetPool(DEFAULT_FLEET, Pool.DEDICATED): PoolLevel(0, 0, 0),
}
HOUR = timedelta(hours=1)
# A sample of each pool for every minute of the last eight days.
WEEK = """
INSERT INTO pool_samples (at, pool, queued, running, oldest_age, desired, live, seconds, done,
  interrupted, replica_seconds)
SELECT now() - n * interval '1 minute', pool, n, 1, 5, 2, 2, 60, 120, 1, 30
FROM generate_series(1, 11520) n, unnest(ARRAY['spot', 'dedicated']) pool
"""


def _sample(world: World, *, kept: float = 86_400) -> bool:
    return SampleRecorder(world.worker).record(LEVELS, retention=kept)


def _minute_passes(world: World) -> None:
    """Make all samples one minute older."""
    with world.database.engine("owner").begin() as connection:
        connection.execute(text("UPDATE pool_samples SET at = at - interval '60 s'"))


def _read(world: World, range_: HistoryRange = HistoryRange.HOUR) -> History:
    return HistoryStore(world.database.engine("operator")).read(range_)


def test_pauses_are_read_from_the_audit_log(world: World) -> None:
    operator = world.database.engine("operator")
    with operator.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO audit_log (actor, action, subject, at)
                VALUES ('ana', 'pool.resumed', 'dedicated', now() - interval '3 hours'),
                  ('ana', 'pool.paused', 'spot', now() - interval '2 hours'),
                  ('ana', 'pool.resumed', 'spot', now() - interval '90 minutes')
            """)
        )
    pauses = PauseStore(operator)
    pauses.pause(Pool.SPOT, "ana")
    pauses.resume(Pool.SPOT, "ana")
    pauses.pause(Pool.DEDICATED, "ana")
    ended, open_ = _read(world).pauses
    assert (ended.pool, open_.pool, open_.until) == (Pool.SPOT, Pool.DEDICATED, None)
    assert ended.until is not None
    assert ended.since < ended.until
    assert [each.pool for each in _read(world, HistoryRange.SIX_HOURS).pauses] == [
        Pool.SPOT,
        Pool.SPOT,
        Pool.DEDICATED,
    ]


def test_history_of_fleet_has_its_samples_pauses_and_batches_alone(world: World) -> None:
    world.run(
        "INSERT INTO pool_samples (at, fleet, pool, queued, running, oldest_age, desired, live, "
        "seconds, done, interrupted, replica_seconds) "
        "SELECT now(), fleet, 'spot', queued, 0, 0, 0, 0, 60, 0, 0, 0 "
        "FROM (VALUES ('large', 90), ('small', 30)) s (fleet, queued)"
    )
    ended = SeedBatch(status=BatchStatus.COMPLETED, total=2, completed=2)
    add_batch(world.worker, replace(ended, parts={"large": 1, "small": 1}))
    add_batch(world.worker, replace(ended, fleet="small"))
    operator = world.database.engine("operator")
    PauseStore(operator).pause(Pool.SPOT, "ana", "small")
    store = HistoryStore(operator)
    read = {fleet: store.read(HistoryRange.HOUR, fleet) for fleet in ("large", "small", None)}
    queued = {name: each.points[-1].pools[Pool.SPOT].queued for name, each in read.items()}
    assert queued == {"large": 90, "small": 30, None: 120}
    met = {name: sum(bar.met for bar in each.sla) for name, each in read.items()}
    assert met == {"large": 1, "small": 2, None: 2}
    assert {name: len(each.pauses) for name, each in read.items()} == {
        "large": 0,
        "small": 1,
        None: 1,
    }


def _counts(world: World, pool: str = "spot") -> list[tuple[int, int, float]]:
    rows = world.rows(
        "SELECT done, interrupted, replica_seconds FROM pool_samples WHERE pool = :pool ORDER BY at",
        pool=pool,
    )
    return [tuple(row) for row in rows]


def test_sample_has_levels_workers_and_oldest_age(world: World) -> None:
    world.batch(5)
    world.run("UPDATE queued_runs SET available_at = now() - interval '90 s'")
    add_worker(world.worker, "spot")
    add_worker(world.worker, "spot", expires_in=-1)
    assert _sample(world)
    (point,) = _read(world).points
    spot, dedicated = point.pools[Pool.SPOT], point.pools[Pool.DEDICATED]
    assert (spot.queued, spot.running, spot.desired, spot.live) == (7, 3, 2, 1)
    assert spot.oldest_age == pytest.approx(90, abs=2)
    assert (dedicated.oldest_age, dedicated.live) == (0, 0)
    assert spot.throughput is spot.interruptions is spot.earning is None, (
        "no earlier sample to compare with"
    )


def test_concurrent_ticks_record_one_sample_per_minute(world: World) -> None:
    assert _sample(world)
    together(*[lambda: _sample(world)] * 3)
    assert world.value("SELECT count(*) FROM pool_samples") == 2
    _minute_passes(world)
    together(*[lambda: _sample(world)] * 3)
    assert world.value("SELECT count(*) FROM pool_samples") == 4


def test_requests_of_open_and_ended_batches_count_once(world: World) -> None:
    open_batch = add_batch(world.worker, SeedBatch(completed=10, failed=2, interrupted=3))
    ended = add_batch(world.worker, SeedBatch(completed=100))
    _sample(world)
    _minute_passes(world)
    world.run("UPDATE tallies SET completed = completed + 5 WHERE batch_id = :b", b=open_batch)
    world.run(
        "UPDATE tallies SET completed = completed + 7, interrupted = interrupted + 1, "
        "replica_seconds = 2.5 WHERE batch_id = :b AND pool = 'spot'",
        b=ended,
    )
    world.run(
        "UPDATE batches SET status = 'completed', completed_at = now() WHERE id = :b", b=ended
    )
    created_and_ended = SeedBatch(status=BatchStatus.COMPLETED, completed=20, took=5 * HOUR / 60)
    add_batch(world.worker, created_and_ended)
    add_batch(
        world.worker, SeedBatch(status=BatchStatus.COMPLETED, completed=9, age=HOUR, took=HOUR / 2)
    )
    _sample(world)
    _minute_passes(world)
    world.run("UPDATE batches SET completed_at = completed_at - interval '60 s'")
    _sample(world)
    assert _counts(world) == [(0, 0, 0), (5 + 7 + 20, 1, 2.5), (0, 0, 0)]
    assert _counts(world, "dedicated") == [(0, 0, 0), (5, 0, 0), (0, 0, 0)]
    assert {row.batch_id for row in world.rows("SELECT batch_id FROM sampled_work")} == {open_batch}


def test_settled_requests_are_counted(world: World) -> None:
    world.batch(10)
    _sample(world)
    _minute_passes(world)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 4)
    world.queue.settle(lease, [done(claim) for claim in claims], [])
    _sample(world)
    point = _read(world).points[-1].pools[Pool.SPOT]
    assert point.throughput == pytest.approx(4 / 60, rel=0.1)


def test_old_samples_are_trimmed_in_steps(world: World) -> None:
    world.run(WEEK)
    before = world.value("SELECT count(*) FROM pool_samples")
    assert _sample(world, kept=7 * 86_400)
    assert world.value("SELECT count(*) FROM pool_samples") == before + 2 - 500
    oldest, newest = world.rows("SELECT min(at) AS at FROM pool_samples UNION ALL SELECT now()")
    assert newest.at - oldest.at < timedelta(days=8) - timedelta(minutes=200)


@pytest.mark.parametrize("range_", list(HistoryRange))
def test_range_is_read_in_steps(world: World, range_: HistoryRange) -> None:
    world.run(WEEK)
    result = _read(world, range_)
    steps = range_.span / range_.step
    assert steps - 1 <= len(result.points) <= min(300, steps + 1)
    assert len(result.runs()) == 1
    inner = result.points[1].pools[Pool.SPOT]
    later = result.points[2].pools[Pool.SPOT]
    assert inner.queued - later.queued == range_.step / timedelta(minutes=1)
    assert (inner.throughput, inner.interruptions, inner.earning) == (2.0, 1.0, 0.5)


def _gaps(points: Sequence[HistoryPoint]) -> list[timedelta]:
    return [after.at - before.at for before, after in pairwise(points)]


def test_missing_samples_make_gap(world: World) -> None:
    world.run(WEEK)
    world.run(
        "DELETE FROM pool_samples WHERE at BETWEEN now() - interval '40 min' "
        "AND now() - interval '30 min'"
    )
    result = _read(world)
    assert len(result.runs()) == 2
    assert max(_gaps(result.points)) >= timedelta(minutes=10)


def test_range_counts_met_and_missed_deadlines(world: World) -> None:
    for seed in (
        SeedBatch(status=BatchStatus.COMPLETED, window=HOUR),
        SeedBatch(status=BatchStatus.COMPLETED, age=2 * HOUR, took=2 * HOUR, window=HOUR),
        SeedBatch(status=BatchStatus.EXPIRED),
        SeedBatch(status=BatchStatus.FAILED),
        SeedBatch(status=BatchStatus.COMPLETED, age=30 * HOUR, took=HOUR),
        SeedBatch(),
    ):
        add_batch(world.worker, seed)
    for range_, met in ((HistoryRange.HOUR, 1), (HistoryRange.WEEK, 2)):
        bars = _read(world, range_).sla
        assert (sum(bar.met for bar in bars), sum(bar.missed for bar in bars)) == (met, 2)


def test_plans_use_indexes(world: World) -> None:
    world.run(WEEK)
    world.run("""
        INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
          completion_window, status, created_at, deadline, completed_at)
        SELECT gen_random_uuid(), '00000000-0000-0000-0000-000000000000', 'ana',
          gen_random_uuid(), 'input', '/v1/embeddings', '24h', 'completed',
          now() - interval '40 days', now() - interval '39 days', now() - interval '39 days'
        FROM generate_series(1, 10000)
    """)
    world.run("""
        INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed)
        SELECT id, 'spot', gen_random_uuid(), tenant_id, 1 FROM batches
    """)
    with world.database.engine("operator").begin() as connection:
        connection.execute(
            text("""
                INSERT INTO audit_log (actor, action, subject)
                SELECT 'ana', 'files.download', 'x' FROM generate_series(1, 20000)
            """)
        )
    with world.database.engine("owner").begin() as connection:
        connection.execute(text("ANALYZE batches, pool_samples, tallies, audit_log"))
    operator = world.database.engine("operator")
    for statement, parameters in (
        (history.POINTS, {"step": 60.0, "span": 3600.0, "fleet": None}),
        (history.SLA, {"bar": 300.0, "span": 3600.0, "fleet": None}),
        (history.PAUSES, {"limit": 100}),
    ):
        nodes = plan_nodes(operator, statement, **parameters)
        assert not [node for node in nodes if node["Node Type"] == "Seq Scan"], statement
    trim = plan_nodes(world.worker, samples.TRIM, kept=8 * 86_400.0, limit=500)
    assert "Seq Scan" not in {node["Node Type"] for node in trim}
    sample = plan_nodes(world.worker, samples.SAMPLE, levels="[]", last=None)
    scanned = {n["Relation Name"] for n in sample if n["Node Type"] == "Seq Scan"}
    assert scanned <= {"workers", "sampled_work"}

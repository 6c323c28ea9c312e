"""Scheduler ticks: their changes, events and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.batches.erasure import Eraser
from lowtide.core.errors import Unavailable
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.events.model import EventType
from lowtide.fleets.store import FleetStore
from lowtide.objects.store import ObstoreObjects
from lowtide.planning.demand import Capacity, PoolScale, RateSample
from lowtide.queue.rates import RateStore
from lowtide.retention.partitions import PartitionStore
from lowtide.retention.service import Retention, RetentionRules
from lowtide.retention.store import RetentionStore
from lowtide.scheduler.samples import SampleRecorder
from lowtide.scheduler.tick import FleetRules, Scheduler, TickRules
from lowtide.search.indexing import SearchIndexer
from lowtide.tenants.quotas import QuotaStore
from tests.fleets.single import SINGLE
from tests.queue.test_scaler_queries import keda_replicas
from tests.scheduler.test_pools_store import pause_store
from tests.tenants.test_audit_retention import AUDITED
from tests.worker.workers import Sink, WaitingPublisher
from tests.worlds import done, together

if TYPE_CHECKING:
    from lowtide.scheduler.tick import TickReport
    from tests.worlds import World

SCALES = {Pool.SPOT: PoolScale(5, 4), Pool.DEDICATED: PoolScale(10, 2)}


def _scheduler(
    world: World,
    *,
    sink: Sink | None = None,
    store: ObstoreObjects | None = None,
    replicas: int = 2,
) -> Scheduler:
    capacity = Capacity(
        rate=1.0, replicas=replicas, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0
    )
    rules = TickRules(
        {DEFAULT_FLEET: FleetRules(capacity, SCALES)},
        cancel_grace=10,
        stalled_after=30,
        history_kept=86_400,
        audit_kept=400 * 86_400,
    )
    publisher = WaitingPublisher(sink or Sink(), world.outbox)
    return Scheduler(
        world.ticks,
        world.timetable,
        RateStore(world.worker),
        QuotaStore(world.worker),
        SampleRecorder(world.worker),
        SearchIndexer(world.worker),
        Retention(
            PartitionStore(world.worker),
            RetentionStore(world.worker),
            RetentionRules(data_kept=30 * 86_400, records_kept=400 * 86_400),
        ),
        Eraser(world.worker),
        store or ObstoreObjects("memory://"),
        [publisher],
        rules,
        lambda: FleetStore(world.worker).mirror(SINGLE),
    )


def _planned(report: TickReport) -> tuple[int, int]:
    """Return the numbers of escalated requests and of batches at risk."""
    assert report.planned is not None
    planned = report.planned[DEFAULT_FLEET]
    return planned.escalated, len(planned.plan.at_risk)


def _desired(report: TickReport) -> dict[Pool, int]:
    return {place.pool: replicas for place, replicas in report.desired_replicas.items()}


def test_idle_tick_reports_nothing(world: World) -> None:
    report = _scheduler(world).tick()
    assert (report.swept.reaped, _planned(report)) == (0, (0, 0))
    assert _desired(report) == {Pool.SPOT: 0, Pool.DEDICATED: 0}


def test_safe_batch_stays_on_spot(world: World) -> None:
    batch = world.batch(26, due_in=86400)
    report = _scheduler(world).tick()
    assert (_planned(report), world.row(batch).at_risk) == ((0, 0), False)
    assert report.planned is not None
    assert report.planned[DEFAULT_FLEET].waiting == {Pool.SPOT: 26, Pool.DEDICATED: 0}
    assert _desired(report) == {Pool.SPOT: 4, Pool.DEDICATED: 0}


def test_batch_that_would_be_late_is_escalated(world: World) -> None:
    batch = world.batch(110, due_in=60)
    report = _scheduler(world).tick()
    # Creating the batch used up the time in which one replica would have been enough.
    assert _planned(report) == (20, 0)
    assert report.planned is not None
    assert report.planned[DEFAULT_FLEET].waiting == {Pool.SPOT: 90, Pool.DEDICATED: 20}
    assert _desired(report)[Pool.DEDICATED] == 2
    assert world.row(batch).escalated == 20


def test_infeasible_batch_is_at_risk_until_capacity_suffices(world: World) -> None:
    batch = world.batch(200, due_in=60)
    assert _planned(_scheduler(world).tick())[1] == 1
    marked = world.row(batch)
    assert (marked.at_risk, marked.risk_reason) == (True, "deadline_bound")
    assert (marked.risk_bound["open"], marked.risk_bound["replicas"]) == (200, 2)
    assert marked.risk_bound["capacity"] < 200
    _scheduler(world).tick()
    again = world.row(batch)
    assert again.risk_since == marked.risk_since, "the second tick marks nothing"
    assert again.risk_bound["seconds"] < marked.risk_bound["seconds"]
    _scheduler(world, replicas=50).tick()
    cleared = world.row(batch)
    assert (cleared.at_risk, cleared.risk_reason, cleared.risk_since) == (False, None, None)
    marks = world.rows(
        "SELECT kind, lines, bound FROM request_events "
        "WHERE kind IN ('at_risk', 'on_track') ORDER BY id"
    )
    assert [(row.kind, row.lines) for row in marks] == [("at_risk", 200), ("on_track", 200)]
    assert marks[0].bound == marked.risk_bound


def test_first_tick_adds_the_numbers_to_the_mark_of_admission(world: World) -> None:
    batch = world.batch(200, due_in=60)
    world.run(
        "UPDATE batches SET at_risk = true, risk_reason = 'deadline_bound', "
        "risk_since = now() - interval '5 s' WHERE id = :id",
        id=batch,
    )
    since = world.row(batch).risk_since
    _scheduler(world).tick()
    marked = world.row(batch)
    assert (marked.risk_bound["open"], marked.risk_since) == (200, since)
    _scheduler(world).tick()
    assert world.value("SELECT count(*) FROM request_events WHERE kind = 'at_risk'") == 1


def test_lost_workers_are_reaped_before_planning(world: World) -> None:
    world.batch(20, due_in=9)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    world.queue.claim(lease, Pool.SPOT, 20)
    world.expire_lease(lease)
    report = _scheduler(world).tick()
    assert (report.swept.reaped, _planned(report)[0]) == (20, 20)


def test_rejected_event_is_resent_and_blocks_no_other(world: World) -> None:
    rejected, accepted = world.new_batch(), world.new_batch()
    world.run("UPDATE outbox SET next_at = now()")
    _scheduler(world, sink=Sink(lambda event: event.subject != f"batch_{rejected.hex}")).tick()
    assert world.events(rejected) == {EventType.BATCH_CREATED.value: 1}
    assert world.events(accepted) == {}, "the accepted event must not wait for the rejected one"
    sink = Sink()
    world.run("UPDATE outbox SET next_at = now()")
    _scheduler(world, sink=sink).tick()
    assert [event.type for event in sink.sent] == [EventType.BATCH_CREATED]
    assert world.events(rejected) == {}


def test_orphans_are_deleted_once_store_is_available(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObstoreObjects("memory://")
    with store.open_writer("files/stray") as writer:
        writer.write(b"x")
    world.run(
        "INSERT INTO orphan_objects VALUES ('files/stray', :tenant, now() - interval '1 s')",
        tenant=world.file().tenant,
    )

    def unavailable(_: Any) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", unavailable)
        _scheduler(world, store=store).tick()
    assert world.value("SELECT count(*) FROM orphan_objects") == 1
    _scheduler(world, store=store).tick()
    assert world.value("SELECT count(*) FROM orphan_objects") == 0
    with pytest.raises(Exception, match="not found"):
        next(iter(store.stream("files/stray")))


def test_one_tick_deletes_more_orphans_than_a_set(world: World) -> None:
    store = ObstoreObjects("memory://")
    file = world.file()
    world.run(
        """INSERT INTO orphan_objects
           SELECT CASE WHEN mod(n, 2) = 0 THEN 'files/stray' || n ELSE :owned || n END, :tenant, now()
           FROM generate_series(1, 1000) n""",
        tenant=file.tenant,
        owned=f"{file.object_key}/",
    )
    _scheduler(world, store=store).tick()
    assert world.value("SELECT count(*) FROM orphan_objects") == 0


def test_hoarding_spot_worker_cannot_break_deadline(world: World) -> None:
    batch = world.batch(100, due_in=55)
    hoarder = world.queue.open_lease(Pool.SPOT, "hoarder")
    hoarded_claims = world.queue.claim(hoarder, Pool.SPOT, 100)
    dedicated = world.queue.open_lease(Pool.DEDICATED, "d")
    finished = 0
    # Each tick is ten seconds later; dedicated runs what two replicas can in that time.
    for left in (55, 45, 35, 25, 15, 5):
        world.run(
            "UPDATE batches SET deadline = now() + make_interval(secs => :left) WHERE id = :id",
            left=left,
            id=batch,
        )
        report = _scheduler(world).tick()
        assert report.planned is not None
        claims = world.queue.claim(dedicated, Pool.DEDICATED, 20)
        assert len(claims) <= 20
        finished += world.queue.settle(dedicated, [done(claim) for claim in claims], []).finished
    assert finished == 100
    assert world.queue.settle(hoarder, [done(claim) for claim in hoarded_claims], []).finished == 0
    assert (world.row(batch).interrupted, world.drained(batch)) == (100, 1)


def test_requests_return_to_spot_when_capacity_grows(world: World) -> None:
    batch = world.batch(110, due_in=60)
    assert _planned(_scheduler(world).tick())[0] == 20
    report = _scheduler(world, replicas=50).tick()
    assert report.planned is not None
    assert (report.planned[DEFAULT_FLEET].returned, _desired(report)[Pool.DEDICATED]) == (20, 0)
    assert report.planned is not None
    assert report.planned[DEFAULT_FLEET].waiting == {Pool.SPOT: 110, Pool.DEDICATED: 0}
    assert world.row(batch).escalated == 0


def test_measured_rate_replaces_configured_rate(world: World) -> None:
    world.batch(110, due_in=600)
    world.batch(1, pool="dedicated")
    lease = world.queue.open_lease(Pool.DEDICATED, "slow")
    world.queue.claim(lease, Pool.DEDICATED, 1)
    assert _planned(_scheduler(world).tick()) == (0, 0)
    for minutes in range(1, 21):
        RateStore(world.worker).report(lease, RateSample(3 * minutes, 60.0 * minutes))
        report = _scheduler(world).tick()
    assert 0.04 < report.rates[DEFAULT_FLEET, Pool.DEDICATED, "m"] <= 0.06
    assert _planned(report)[1] == 1


def test_concurrent_ticks_move_requests_once(world: World) -> None:
    batch = world.batch(110, due_in=60)
    together(*[lambda: _scheduler(world).tick()] * 3)
    assert world.row(batch).escalated == 20
    assert world.value("SELECT count(*) FROM queue WHERE pool = 'dedicated'") == 20


def test_paused_spot_gets_no_replicas_and_its_requests_escalate(world: World) -> None:
    batch = world.batch(110, due_in=60)
    pause_store(world).pause(Pool.SPOT, "ana")
    report = _scheduler(world).tick()
    assert _planned(report) == (20, 0)
    assert _desired(report) == {Pool.SPOT: 0, Pool.DEDICATED: 2}
    pause_store(world).resume(Pool.SPOT, "ana")
    assert _desired(_scheduler(world).tick())[Pool.SPOT] == 4
    assert not world.row(batch).at_risk


def test_paused_dedicated_returns_its_requests_to_spot(world: World) -> None:
    batch = world.batch(110, due_in=60)
    _scheduler(world).tick()
    pause_store(world).pause(Pool.DEDICATED, "ana")
    report = _scheduler(world).tick()
    assert report.planned is not None
    assert (report.planned[DEFAULT_FLEET].returned, _planned(report)) == (20, (0, 1))
    assert report.planned[DEFAULT_FLEET].waiting == {Pool.SPOT: 110, Pool.DEDICATED: 0}
    assert _desired(report) == {Pool.SPOT: 4, Pool.DEDICATED: 0}
    assert world.row(batch).at_risk
    recorded = world.rows("SELECT kind, lines, pool, reason FROM request_events ORDER BY id")
    assert [tuple(row) for row in recorded[-2:]] == [
        ("returned", 20, "spot", "pool_paused"),
        ("at_risk", 110, "dedicated", "pool_paused"),
    ]
    pause_store(world).resume(Pool.DEDICATED, "ana")
    assert _planned(_scheduler(world).tick()) == (20, 0)
    assert not world.row(batch).at_risk


@pytest.mark.parametrize("paused", [False, True], ids=["not paused", "paused"])
@pytest.mark.parametrize(
    ("requests", "claimed", "replicas"),
    [
        pytest.param(0, 0, (0, 0), id="none"),
        pytest.param(26, 0, (1, 0), id="all of them wait"),
        pytest.param(26, 9, (1, 1), id="some of them run"),
        pytest.param(9, 9, (1, 1), id="all of them run"),
    ],
)
def test_tick_reports_same_replicas_as_keda(
    world: World, requests: int, claimed: int, replicas: tuple[int, int], *, paused: bool
) -> None:
    if requests:
        batch = world.batch(requests, due_in=86_400, pool="dedicated")
        world.run("UPDATE batches SET start_pool = 'dedicated' WHERE id = :id", id=batch)
    world.queue.claim(world.queue.open_lease(Pool.DEDICATED, "w"), Pool.DEDICATED, claimed)
    if paused:
        pause_store(world).pause(Pool.DEDICATED, "ana")
    reported = _desired(_scheduler(world).tick())
    assert reported[Pool.DEDICATED] == replicas[paused]
    assert reported == {pool: keda_replicas(world, pool) for pool in Pool}


def test_tick_records_one_sample_per_minute(world: World) -> None:
    world.batch(26)
    _scheduler(world).tick()
    _scheduler(world).tick()
    rows = world.rows("SELECT pool, queued, running, desired FROM pool_samples")
    assert {tuple(row) for row in rows} == {("spot", 26, 0, 4), ("dedicated", 0, 0, 0)}
    minutes = world.rows("SELECT pool, date_trunc('minute', at) AS minute FROM pool_samples")
    assert len({tuple(row) for row in minutes}) == len(minutes)


@pytest.mark.parametrize("error", [Unavailable("away"), RuntimeError("a bug")], ids=repr)
def test_tick_survives_failed_sample_and_audit_trim(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(SampleRecorder, "record", fail)
    monkeypatch.setattr(world.ticks, "trim_audit", fail)
    batch = world.batch(110, due_in=60)
    assert _planned(_scheduler(world).tick())[0] == 20
    assert world.row(batch).escalated == 20
    logged = [record.message for record in caplog.records]
    assert logged == ["history.not_recorded", "audit.not_trimmed"]


def test_tick_fails_when_its_sweep_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.ticks, "sweep", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        _scheduler(world).tick()


def test_tick_trims_audit_log(world: World) -> None:
    with world.database.engine("operator").begin() as connection:
        connection.execute(text(AUDITED), {"days": [401, 399]})
    _scheduler(world).tick()
    assert world.value("SELECT count(id) FROM audit_log") == 1

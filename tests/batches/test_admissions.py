"""Admission of a new batch beside the open work of all tenants, and the workload of that work."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from lowtide.batches.admission import AdmissionPolicy
from lowtide.batches.forecast import WorkloadStore
from lowtide.batches.model import Batch, NewBatch, SlaState
from lowtide.batches.workload import FleetCapacity, PoolWorkers
from lowtide.core.errors import Conflict
from lowtide.core.ids import DEFAULT_TENANT, BatchId, TenantId, new_id
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from lowtide.engines.breaker import BreakerState
from lowtide.events.model import EventType, batch_event
from lowtide.planning.demand import Capacity, Rate
from lowtide.queue.rates import ConcurrencyStore
from tests.worlds import PRICES, World, done, together

HOUR = 3600
# 3,600 requests an hour; nothing is lost.
CAPACITY = Capacity(rate=1.0, replicas=1, cold_start=0.0, margin=0.0, tick=10.0, in_flight=0)
OPEN, STRICT = (
    AdmissionPolicy({DEFAULT_FLEET: CAPACITY}),
    AdmissionPolicy({DEFAULT_FLEET: CAPACITY}, strict=True),
)


def _create(
    world: World,
    lines: int,
    policy: AdmissionPolicy = OPEN,
    *,
    tenant: TenantId = DEFAULT_TENANT,
    key: str | None = None,
) -> Batch:
    """Create a batch with a deadline in an hour."""
    now = datetime.now(UTC)
    new = NewBatch(
        id=BatchId(new_id()), tenant=tenant, user="me",
        input_file=world.file(tenant, lines=lines).id, endpoint="/v1/embeddings",
        completion_window="1h", created_at=now, deadline=now + timedelta(seconds=HOUR),
        metadata=None, prices=PRICES,
        idempotency_key=key,
    )  # fmt: skip
    event = batch_event(new_id(), EventType.BATCH_CREATED, tenant, new.id)
    return world.batches.create(new, event, policy)[0]


@pytest.mark.parametrize(("lines", "state"), [(3500, SlaState.ON_TRACK), (3601, SlaState.AT_RISK)])
def test_new_batch_has_sla_state(world: World, lines: int, state: SlaState) -> None:
    assert _create(world, lines).sla_state is state


def test_work_of_other_tenants_counts(world: World) -> None:
    other = world.tenant("other")
    assert _create(world, 2000, tenant=other).sla_state is SlaState.ON_TRACK
    assert _create(world, 2000).sla_state is SlaState.AT_RISK


def test_strict_rejection_records_nothing(world: World) -> None:
    before = world.rows("SELECT id FROM batches"), world.rows("SELECT id FROM outbox")
    with pytest.raises(
        Conflict, match=r"the earliest feasible deadline is .*, a completion window"
    ):
        _create(world, 3601, STRICT)
    assert (world.rows("SELECT id FROM batches"), world.rows("SELECT id FROM outbox")) == before


def test_strict_accepts_retry(world: World) -> None:
    first = _create(world, 3500, STRICT, key="once")
    assert _create(world, 3500, STRICT, key="once").id == first.id
    with pytest.raises(Conflict):
        _create(world, 3500, STRICT, key="another")


def test_strict_admits_once_under_concurrency(world: World) -> None:
    def admitted() -> bool:
        try:
            _create(world, 2000, STRICT)
        except Conflict:
            return False
        return True

    assert sorted(together(*[admitted] * 4)) == [False, False, False, True]


def test_outlook_counts_open_requests_by_deadline(world: World) -> None:
    other = world.tenant("other")
    waiting = _create(world, 70)
    running = world.batch(10, tenant=other, due_in=100)
    cancelled = world.batch(5, due_in=50)
    world.cancel(cancelled)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    expired = world.queue.open_lease(Pool.DEDICATED, "gone")
    world.expire_lease(expired)
    for pool, state in (
        (Pool.DEDICATED, BreakerState.OPEN),
        (Pool.SPOT, BreakerState.PROBING),
        (Pool.SPOT, BreakerState.STARTING),
    ):
        unavailable = world.queue.open_lease(pool, state)
        world.queue.report_engine(unavailable, state, "It does not answer.")
    claims = world.queue.claim(lease, Pool.SPOT, 3)
    world.queue.settle(lease, [done(claim) for claim in claims], [])
    world.run(
        "INSERT INTO service_rates (pool, model, seconds, lines, squares, weights) "
        "VALUES ('spot', 'm', 100, 50, 25, 10000)"
    )
    ConcurrencyStore(world.worker, FleetPool(DEFAULT_FLEET, Pool.SPOT), "").record(96)
    workload = WorkloadStore(world.api).read().of(DEFAULT_FLEET)
    assert [(work.model, work.lines, work.ended) for work in workload.work] == [
        ("m", 7, 3),
        (None, 70, 0),
    ]
    assert workload.work[1].deadline == waiting.deadline
    assert workload.workers == {
        Pool.SPOT: PoolWorkers(ready=1, away=1, starting=1),
        Pool.DEDICATED: PoolWorkers(away=1),
    }
    assert workload.rates == {(Pool.SPOT, "m"): Rate(100, 50, 25, 10000)}
    assert workload.concurrency == {Pool.SPOT: 96}
    batch = world.batches.get(other, running)
    forecast = workload.forecast(batch, FleetCapacity(Capacity(0.5, 0, 200.0, 0.0, 10.0)))
    assert forecast is not None
    # The engine that starts is expected in 100 s.
    assert forecast.likely == workload.at + timedelta(seconds=14)


def test_outlook_is_empty_without_work(world: World) -> None:
    workload = WorkloadStore(world.api).read().of(DEFAULT_FLEET)
    assert (workload.work, workload.workers, workload.rates) == ((), {}, {})
    assert abs(workload.at - datetime.now(UTC)) < timedelta(seconds=30)


def test_concurrent_open_creations_all_succeed(world: World) -> None:
    batches = together(*[partial(_create, world, 10)] * 4)
    assert all(batch.sla_state is SlaState.ON_TRACK for batch in batches)

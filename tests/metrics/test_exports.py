"""Exported metrics."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY

from lowtide.core.ids import BatchId, TenantId, new_id
from lowtide.core.pools import Depth, Pool, Prices
from lowtide.engines.breaker import BreakerState
from lowtide.engines.outcomes import Answered, Interrupted, Unanswered
from lowtide.queue.claims import Claim
from lowtide.status import metrics
from lowtide.status.snapshot import (
    Backlog,
    FleetLoad,
    LiveWorkers,
    RiskyBatch,
    SystemSnapshot,
    TenantLoad,
)
from lowtide.telemetry import health
from lowtide.worker.metrics import WorkerMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.engines.outcomes import Outcome

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
ACME = TenantLoad(
    TenantId(new_id()),
    "acme",
    2,
    1,
    {Pool.SPOT: Depth(7, 3), Pool.DEDICATED: Depth(1, 0)},
    {Pool.SPOT: NOW - timedelta(seconds=61), Pool.DEDICATED: NOW + timedelta(seconds=9)},
)
BETA = TenantLoad(
    TenantId(new_id()),
    "beta",
    1,
    0,
    {pool: Depth(0, 0) for pool in Pool},
    {Pool.SPOT: NOW - timedelta(seconds=5)},
)


@pytest.fixture
def _cleared_snapshot() -> Iterator[None]:
    yield
    metrics._LATEST.seen = None


def _value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


@pytest.mark.usefixtures("_cleared_snapshot")
def test_snapshot_is_published_as_a_whole() -> None:
    assert _value("outbox_events") is None  # unknown is not 0
    batch = BatchId(new_id())
    metrics.measured(
        SystemSnapshot(
            NOW,
            tenants=(ACME, BETA),
            risky=(RiskyBatch("acme", batch, NOW - timedelta(seconds=3)),),
            fleets={
                "l4": FleetLoad(tenants=(ACME,), live_workers={Pool.SPOT: LiveWorkers(4, NOW)}),
                "h100": FleetLoad(live_workers={Pool.SPOT: LiveWorkers(1, NOW)}),
            },
            open_letters={"acme": 9},
            events=Backlog(2, NOW - timedelta(seconds=8)),
        )
    )
    assert _value("queue_oldest_age_seconds", fleet="l4", pool="spot") == 61
    assert _value("queue_oldest_age_seconds", fleet="l4", pool="dedicated") == 0
    assert _value("queue_oldest_age_seconds", fleet="h100", pool="spot") == 0
    assert _value("workers_alive", fleet="l4", pool="spot") == 4
    assert _value("workers_alive", fleet="l4", pool="dedicated") == 0
    assert _value("workers_alive", fleet="h100", pool="spot") == 1
    assert _value("tenant_queue_depth", tenant="acme", pool="spot") == 7
    assert _value("tenant_running", tenant="acme", pool="spot") == 3
    assert _value("tenant_queue_oldest_age_seconds", tenant="beta", pool="spot") == 5
    assert _value("tenant_batches_at_risk", tenant="acme") == 1
    assert _value("tenant_dead_letters", tenant="acme") == 9
    batch_id = f"batch_{batch.hex}"
    assert _value("batch_at_risk_seconds_left", tenant="acme", batch=batch_id) == -3
    assert (_value("outbox_events"), _value("outbox_oldest_age_seconds")) == (2, 8)
    metrics.measured(SystemSnapshot(NOW, tenants=(BETA,), fleets={"l4": FleetLoad()}))
    assert _value("tenant_open_batches", tenant="acme") is None
    assert _value("tenant_open_batches", tenant="beta") == 1
    assert _value("workers_alive", fleet="l4", pool="spot") == 0
    assert _value("workers_alive", fleet="h100", pool="spot") is None


def test_engine_answers_are_counted_by_outcome() -> None:
    meter = WorkerMetrics(Pool.DEDICATED, Prices(1.0, 3.0, "USD"), lambda _: None, fleet="l4")
    answers = ("200", "429", "timeout", "interrupted")

    def counts() -> list[float]:
        return [
            _value("engine_answers_total", fleet="l4", pool="dedicated", answer=answer) or 0.0
            for answer in answers
        ]

    before = counts()
    outcomes: list[Outcome] = [
        Answered(200, b"{}"),
        Answered(429, b"{}"),
        Unanswered("timeout", ""),
        Interrupted(""),
    ]
    meter.ran([*outcomes, Answered(200, b"{}")])
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [2, 1, 1, 1]


def test_metrics_of_a_worker_name_its_fleet_and_pool() -> None:
    meter = WorkerMetrics(Pool.SPOT, Prices(3600.0, 7200.0, "EUR"), lambda _: None, fleet="h100")
    by_fleet = {"fleet": "h100", "pool": "spot"}
    assert _value("worker_engine_up", **by_fleet) == 0
    meter.engine_is(BreakerState.CLOSED)
    meter.engine_failed("http_503")
    meter.spent(2.5)
    assert _value("worker_engine_up", **by_fleet) == 1
    assert _value("engine_faults_total", **by_fleet, kind="http_503") == 1
    assert _value("replica_seconds_total", **by_fleet) == 2.5
    assert _value("cost_total", **by_fleet, currency="EUR") == 2.5
    assert _value("queue_wait_time_seconds_count", **by_fleet) == 0


def test_waits_are_observed_by_fleet_and_pool_in_buckets() -> None:
    meter = WorkerMetrics(Pool.SPOT, Prices(1.0, 3.0, "USD"), lambda _: None, fleet="waits")
    waits = [0.05, 0.1, 0.4, 0.4, 70.0, 1e6]
    batch = BatchId(new_id())
    claims = [Claim(batch, "/e", "k", n, 0, 1, 0, 0, wait) for n, wait in enumerate(waits)]
    claims += [Claim(batch, "/e", "k", 99, 0, 1, 1, 0, 5.0)]  # no first claim
    meter.dequeued(claims)
    by_fleet = {"fleet": "waits", "pool": "spot"}
    buckets = {"0.1": 2, "0.5": 4, "60.0": 4, "300.0": 5, "86400.0": 5, "+Inf": 6}
    for bound, requests in buckets.items():
        assert _value("queue_wait_time_seconds_bucket", **by_fleet, le=bound) == requests
    assert _value("queue_wait_time_seconds_count", **by_fleet) == len(waits)
    assert _value("queue_wait_time_seconds_sum", **by_fleet) == pytest.approx(sum(waits))


def test_settled_dead_letters_are_counted() -> None:
    before = _value("dead_letters_total") or 0.0
    WorkerMetrics(Pool.SPOT, Prices(1.0, 3.0, "USD"), lambda _: None).settled(1, 3, 2)
    assert (_value("dead_letters_total") or 0.0) - before == 2


def test_process_exports_its_build_info() -> None:
    health.export()
    assert [
        s.value for m in REGISTRY.collect() if m.name == "lowtide_build_info" for s in m.samples
    ] == [1]

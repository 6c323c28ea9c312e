"""The metrics behind alerts and dashboards, from a snapshot of the system."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lowtide.core.ids import format_batch_id
from lowtide.core.pools import Pool
from lowtide.status.snapshot import SystemSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable


_NOTHING = SystemSnapshot(datetime.min.replace(tzinfo=UTC))


class _Latest(Collector):
    """Collector of the last reading; a tenant without open batches leaves no series behind."""

    def __init__(self) -> None:
        self.seen: SystemSnapshot | None = None

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the exported metrics without samples, also before the first reading."""
        return _families(_NOTHING)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the last reading; nothing before the first."""
        return [] if self.seen is None else _families(self.seen)


_LATEST = _Latest()


def measured(snapshot: SystemSnapshot) -> None:
    """Publish a reading."""
    _LATEST.seen = snapshot


def _families(snapshot: SystemSnapshot) -> list[GaugeMetricFamily]:
    return [*_of_pools(snapshot), *_of_tenants(snapshot), *_of_events(snapshot)]


def _of_pools(snapshot: SystemSnapshot) -> list[GaugeMetricFamily]:
    by_fleet = ["fleet", "pool"]
    age = GaugeMetricFamily(
        "queue_oldest_age_seconds",
        "Age of the oldest claimable request of the fleet's pool, in seconds.",
        labels=by_fleet,
    )
    workers = GaugeMetricFamily("workers_alive", "Workers with a valid lease.", labels=by_fleet)
    for fleet, part in snapshot.by_fleet():
        for pool in Pool:
            age.add_metric([fleet, pool.value], part.oldest_age(pool))
            workers.add_metric([fleet, pool.value], part.workers(pool))
    return [age, workers]


def _of_tenants(snapshot: SystemSnapshot) -> list[GaugeMetricFamily]:
    batches = GaugeMetricFamily(
        "tenant_open_batches", "Open batches of the tenant.", labels=["tenant"]
    )
    at_risk = GaugeMetricFamily(
        "tenant_batches_at_risk", "Open batches whose deadline cannot be met.", labels=["tenant"]
    )
    by_pool = ["tenant", "pool"]
    queued = GaugeMetricFamily(
        "tenant_queue_depth", "Queued requests of the tenant.", labels=by_pool
    )
    running = GaugeMetricFamily("tenant_running", "Running requests of the tenant.", labels=by_pool)
    oldest = GaugeMetricFamily(
        "tenant_queue_oldest_age_seconds",
        "queue_oldest_age_seconds of one tenant.",
        labels=by_pool,
    )
    for tenant in snapshot.tenants:
        batches.add_metric([tenant.name], tenant.batches)
        at_risk.add_metric([tenant.name], tenant.at_risk)
        for pool, depth in tenant.depths.items():
            queued.add_metric([tenant.name, pool.value], depth.queued)
            running.add_metric([tenant.name, pool.value], depth.running)
            oldest.add_metric([tenant.name, pool.value], tenant.oldest_age(pool, snapshot.at))
    letters = GaugeMetricFamily(
        "tenant_dead_letters", "Open dead letters of the tenant.", labels=["tenant"]
    )
    for name, count in snapshot.open_letters.items():
        letters.add_metric([name], count)
    risky = GaugeMetricFamily(
        "batch_at_risk_seconds_left",
        "Seconds until the deadline of each batch at risk; only the most urgent ones.",
        labels=["tenant", "batch"],
    )
    for batch in snapshot.risky:
        left = (batch.deadline - snapshot.at).total_seconds()
        risky.add_metric([batch.tenant, format_batch_id(batch.batch)], left)
    return [batches, at_risk, queued, running, oldest, letters, risky, _of_quotas(snapshot)]


def _of_quotas(snapshot: SystemSnapshot) -> GaugeMetricFamily:
    used = GaugeMetricFamily(
        "tenant_quota_used_ratio",
        "Used share of the tenant's quota, 1 for all of it; only tenants that have one.",
        labels=["tenant", "quota"],
    )
    for use in snapshot.quotas:
        used.add_metric([use.tenant, use.quota], use.share)
    return used


def _of_events(snapshot: SystemSnapshot) -> list[GaugeMetricFamily]:
    events = GaugeMetricFamily("outbox_events", "Events that the broker has not accepted yet.")
    events.add_metric([], snapshot.events.count)
    oldest = GaugeMetricFamily(
        "outbox_oldest_age_seconds",
        "Age of the oldest event in the outbox, in seconds; 0 if there is none.",
    )
    oldest.add_metric([], _age(snapshot.events.since, snapshot.at))
    audit = GaugeMetricFamily(
        "audit_outbox_oldest_age_seconds",
        "Age of the oldest event of the audit log not accepted yet, in seconds; 0 if there is none.",
    )
    audit.add_metric([], _age(snapshot.audit_events_since, snapshot.at))
    return [events, oldest, audit]


def _age(since: datetime | None, at: datetime) -> float:
    return 0.0 if since is None else max((at - since).total_seconds(), 0.0)


REGISTRY.register(_LATEST)

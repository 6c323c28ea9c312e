"""What the last tick saw of the whole installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lowtide.domain.ids import format_batch_id
from lowtide.domain.pools import Pool
from lowtide.domain.vitals import Vitals

if TYPE_CHECKING:
    from collections.abc import Iterable

_NOTHING = Vitals((), (), {}, {}, 0, 0.0)


class _Latest(Collector):
    """The last look, all of it at once: a tenant without open batches leaves no series behind."""

    def __init__(self) -> None:
        self.seen: Vitals | None = None

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Name what is exported, also before the first look."""
        return _families(_NOTHING)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the last look; nothing before one."""
        return [] if self.seen is None else _families(self.seen)


_LATEST = _Latest()


def measured(vitals: Vitals) -> None:
    """Publish a look."""
    _LATEST.seen = vitals


def _families(vitals: Vitals) -> list[GaugeMetricFamily]:
    return [*_of_pools(vitals), *_of_tenants(vitals), *_of_events(vitals)]


def _of_pools(vitals: Vitals) -> list[GaugeMetricFamily]:
    age = GaugeMetricFamily(
        "queue_oldest_age_seconds",
        "Seconds that the first line of a pool has waited since it could be claimed there.",
        labels=["pool"],
    )
    workers = GaugeMetricFamily("workers_alive", "Workers with a living lease.", labels=["pool"])
    for pool in Pool:
        ages = [tenant.oldest.get(pool, 0.0) for tenant in vitals.tenants]
        age.add_metric([pool.value], max(ages, default=0.0))
        workers.add_metric([pool.value], vitals.workers.get(pool, 0))
    return [age, workers]


def _of_tenants(vitals: Vitals) -> list[GaugeMetricFamily]:
    batches = GaugeMetricFamily("tenant_open_batches", "Batches that run.", labels=["tenant"])
    at_risk = GaugeMetricFamily(
        "tenant_batches_at_risk", "Those whose deadline cannot be held.", labels=["tenant"]
    )
    by_pool = ["tenant", "pool"]
    queued = GaugeMetricFamily("tenant_queue_depth", "A tenant's lines that wait.", labels=by_pool)
    running = GaugeMetricFamily("tenant_running", "A tenant's lines that run.", labels=by_pool)
    oldest = GaugeMetricFamily(
        "tenant_queue_oldest_age_seconds",
        "As queue_oldest_age_seconds, of one tenant.",
        labels=by_pool,
    )
    for tenant in vitals.tenants:
        batches.add_metric([tenant.name], tenant.batches)
        at_risk.add_metric([tenant.name], tenant.at_risk)
        for pool, depth in tenant.depths.items():
            queued.add_metric([tenant.name, pool.value], depth.queued)
            running.add_metric([tenant.name, pool.value], depth.running)
            oldest.add_metric([tenant.name, pool.value], tenant.oldest.get(pool, 0.0))
    letters = GaugeMetricFamily(
        "tenant_dead_letters", "Dead letters that nobody requeued or discarded.", labels=["tenant"]
    )
    for name, count in vitals.open_letters.items():
        letters.add_metric([name], count)
    risky = GaugeMetricFamily(
        "batch_at_risk_seconds_left",
        "Seconds until the deadline of each batch that cannot hold it, the most urgent ones.",
        labels=["tenant", "batch"],
    )
    for batch in vitals.risky:
        risky.add_metric([batch.tenant, format_batch_id(batch.batch)], batch.left)
    return [batches, at_risk, queued, running, oldest, letters, risky]


def _of_events(vitals: Vitals) -> list[GaugeMetricFamily]:
    events = GaugeMetricFamily("outbox_events", "Events that nobody has taken yet.")
    events.add_metric([], vitals.events)
    oldest = GaugeMetricFamily(
        "outbox_oldest_age_seconds", "Seconds since the first of them; 0 while there is none."
    )
    oldest.add_metric([], vitals.oldest_event)
    return [events, oldest]


REGISTRY.register(_LATEST)

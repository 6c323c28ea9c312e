"""The metrics behind alerts and dashboards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import text

from lowtide.core.ids import BatchId, format_batch_id
from lowtide.core.pools import Depth, Pool
from lowtide.database.connections import begin
from lowtide.scheduler.plan import BATCHES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Engine


@dataclass(frozen=True, slots=True)
class TenantVitals:
    """A tenant with open batches.

    `oldest` are the seconds by pool since the first queued request became claimable; a pool without
    queued requests is missing.
    """

    name: str
    batches: int
    at_risk: int
    depths: Mapping[Pool, Depth]
    oldest: Mapping[Pool, float]


@dataclass(frozen=True, slots=True)
class RiskyBatch:
    """A batch at risk of missing its deadline, and the seconds left until then."""

    tenant: str
    batch: BatchId
    left: float


@dataclass(frozen=True, slots=True)
class Vitals:
    """One reading.

    `open_letters` are the dead letters by tenant that were neither requeued nor discarded, `events`
    those in the outbox; both counts stop at MOST_COUNTED. `oldest_event` is in seconds.
    """

    tenants: tuple[TenantVitals, ...]
    risky: tuple[RiskyBatch, ...]
    workers: Mapping[Pool, int]
    open_letters: Mapping[str, int]
    events: int
    oldest_event: float


# Alerts need no exact numbers above these.
MOST_COUNTED = 10_000
MOST_RISKY = 50

TENANTS = f"""
SELECT t.name, count(*) AS batches, count(*) FILTER (WHERE b.at_risk) AS at_risk,
  sum(l.spot)::bigint AS spot, sum(l.dedicated)::bigint AS dedicated,
  sum(l.running_spot)::bigint AS running_spot,
  sum(l.running_dedicated)::bigint AS running_dedicated,
  extract(epoch FROM now() - min(f.spot))::float8 AS oldest_spot,
  extract(epoch FROM now() - min(f.dedicated))::float8 AS oldest_dedicated
FROM ({BATCHES}) l JOIN batches b ON b.id = l.id JOIN tenants t ON t.id = b.tenant_id
CROSS JOIN LATERAL (SELECT
  (SELECT available_at FROM queue WHERE pool = 'spot' AND batch_id = b.id
   ORDER BY available_at LIMIT 1) AS spot,
  (SELECT available_at FROM queue WHERE pool = 'dedicated' AND batch_id = b.id
   ORDER BY available_at LIMIT 1) AS dedicated) f
GROUP BY t.name
"""  # noqa: S608 - two constants of ours
RISKY = """
SELECT b.id, t.name, extract(epoch FROM b.deadline - now())::float8 AS left
FROM batches b JOIN tenants t ON t.id = b.tenant_id
WHERE b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling') AND b.at_risk
ORDER BY b.deadline LIMIT :most
"""
# Ids are ordered by time.
EVENTS = """
SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox LIMIT :most) o) AS events,
  (SELECT extract(epoch FROM now() - created_at)::float8 FROM outbox ORDER BY id LIMIT 1) AS oldest
"""
LETTERS = """
SELECT t.name, l.letters FROM tenants t CROSS JOIN LATERAL (
  SELECT count(*) AS letters FROM (
    SELECT 1 FROM dead_letters WHERE tenant_id = t.id AND state = 'open' LIMIT :most) d) l
WHERE l.letters > 0
"""
WORKERS = "SELECT pool, count(*) AS workers FROM workers WHERE expires_at > now() GROUP BY pool"

_TENANTS, _RISKY, _EVENTS, _LETTERS, _WORKERS = map(
    text, (TENANTS, RISKY, EVENTS, LETTERS, WORKERS)
)


class VitalsStore:
    """Queries for the metrics, as a role with access to every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Vitals:
        """Return a reading; raises Unavailable."""
        with begin(self._engine) as connection:
            events = connection.execute(_EVENTS, {"most": MOST_COUNTED}).one()
            return Vitals(
                tenants=tuple(_tenant(row) for row in connection.execute(_TENANTS)),
                risky=tuple(
                    RiskyBatch(row.name, BatchId(row.id), row.left)
                    for row in connection.execute(_RISKY, {"most": MOST_RISKY})
                ),
                workers={Pool(row.pool): row.workers for row in connection.execute(_WORKERS)},
                open_letters={
                    row.name: row.letters
                    for row in connection.execute(_LETTERS, {"most": MOST_COUNTED})
                },
                events=events.events,
                oldest_event=max(events.oldest or 0.0, 0.0),
            )


def _tenant(row: Any) -> TenantVitals:
    oldest = {Pool.SPOT: row.oldest_spot, Pool.DEDICATED: row.oldest_dedicated}
    return TenantVitals(
        name=row.name,
        batches=row.batches,
        at_risk=row.at_risk,
        depths={
            Pool.SPOT: Depth(row.spot, row.running_spot),
            Pool.DEDICATED: Depth(row.dedicated, row.running_dedicated),
        },
        # A request in a retry delay is not claimable yet: its negative age counts as 0.
        oldest={pool: max(age, 0.0) for pool, age in oldest.items() if age is not None},
    )


_NOTHING = Vitals((), (), {}, {}, 0, 0.0)


class _Latest(Collector):
    """Collector of the last reading; a tenant without open batches leaves no series behind."""

    def __init__(self) -> None:
        self.seen: Vitals | None = None

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the exported metrics without samples, also before the first reading."""
        return _families(_NOTHING)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the last reading; nothing before the first."""
        return [] if self.seen is None else _families(self.seen)


_LATEST = _Latest()


def measured(vitals: Vitals) -> None:
    """Publish a reading."""
    _LATEST.seen = vitals


def _families(vitals: Vitals) -> list[GaugeMetricFamily]:
    return [*_of_pools(vitals), *_of_tenants(vitals), *_of_events(vitals)]


def _of_pools(vitals: Vitals) -> list[GaugeMetricFamily]:
    age = GaugeMetricFamily(
        "queue_oldest_age_seconds",
        "Age of the oldest claimable request of the pool, in seconds.",
        labels=["pool"],
    )
    workers = GaugeMetricFamily("workers_alive", "Workers with a valid lease.", labels=["pool"])
    for pool in Pool:
        ages = [tenant.oldest.get(pool, 0.0) for tenant in vitals.tenants]
        age.add_metric([pool.value], max(ages, default=0.0))
        workers.add_metric([pool.value], vitals.workers.get(pool, 0))
    return [age, workers]


def _of_tenants(vitals: Vitals) -> list[GaugeMetricFamily]:
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
    for tenant in vitals.tenants:
        batches.add_metric([tenant.name], tenant.batches)
        at_risk.add_metric([tenant.name], tenant.at_risk)
        for pool, depth in tenant.depths.items():
            queued.add_metric([tenant.name, pool.value], depth.queued)
            running.add_metric([tenant.name, pool.value], depth.running)
            oldest.add_metric([tenant.name, pool.value], tenant.oldest.get(pool, 0.0))
    letters = GaugeMetricFamily(
        "tenant_dead_letters", "Open dead letters of the tenant.", labels=["tenant"]
    )
    for name, count in vitals.open_letters.items():
        letters.add_metric([name], count)
    risky = GaugeMetricFamily(
        "batch_at_risk_seconds_left",
        "Seconds until the deadline of each batch at risk; only the most urgent ones.",
        labels=["tenant", "batch"],
    )
    for batch in vitals.risky:
        risky.add_metric([batch.tenant, format_batch_id(batch.batch)], batch.left)
    return [batches, at_risk, queued, running, oldest, letters, risky]


def _of_events(vitals: Vitals) -> list[GaugeMetricFamily]:
    events = GaugeMetricFamily("outbox_events", "Events that the broker has not accepted yet.")
    events.add_metric([], vitals.events)
    oldest = GaugeMetricFamily(
        "outbox_oldest_age_seconds",
        "Age of the oldest event in the outbox, in seconds; 0 if there is none.",
    )
    oldest.add_metric([], vitals.oldest_event)
    return [events, oldest]


REGISTRY.register(_LATEST)

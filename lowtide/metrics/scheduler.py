"""The scheduler's metrics, under the original's names where it had them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from lowtide.domain.pools import Pool

if TYPE_CHECKING:
    from lowtide.services.scheduling import TickReport

_TICKS = Counter("scheduler_ticks_total", "Ticks done.")
_REAPED = Counter("leases_reaped_lines_total", "Lines given back from expired leases.")
_ESCALATED = Counter("escalations_total", "Lines moved to dedicated.")
_AT_RISK = Gauge("batches_at_risk", "Batches whose deadline cannot be held.")
_QUEUED = Gauge("queue_depth", "Lines that wait.", ["pool"])
_DESIRED = {
    Pool.SPOT: Gauge("autoscaler_desired_spot_replicas", "Replicas that spot wants."),
    Pool.DEDICATED: Gauge(
        "autoscaler_desired_dedicated_replicas", "Replicas that dedicated wants."
    ),
}


def ticked(report: TickReport) -> None:
    """Publish what one tick saw and did."""
    _TICKS.inc()
    _REAPED.inc(report.reaped)
    _ESCALATED.inc(report.escalated)
    _AT_RISK.set(report.at_risk)
    for pool, lines in report.queued.items():
        _QUEUED.labels(pool.value).set(lines)
    for pool, replicas in report.desired_replicas.items():
        _DESIRED[pool].set(replicas)

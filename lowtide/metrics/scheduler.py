"""The scheduler's metrics, under the original's names where it had them."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from lowtide.domain.pools import Pool
from lowtide.metrics import requests

if TYPE_CHECKING:
    from lowtide.domain.situations import Replanned
    from lowtide.services.scheduling import TickReport

_TICKS = Counter("scheduler_ticks_total", "Ticks done.")
_LAST_TICK = Gauge("scheduler_last_tick_timestamp_seconds", "When the last tick was done.")
_REAPED = Counter("leases_reaped_lines_total", "Lines given back from expired leases.")
_ESCALATED = Counter("escalations_total", "Lines moved to dedicated.")
_RETURNED = Counter("deescalations_total", "Lines given back to spot before dedicated ran them.")
_REVOKED = Counter("revocations_total", "Lines taken from spot workers for dedicated.")
_SLACK = Gauge(
    "batch_deadline_slack_seconds",
    "Least time, over all open batches, until every dedicated replica must run; below 0, a "
    "deadline cannot be held.",
)
_WANTED = Gauge("dedicated_replicas_planned", "Dedicated replicas that the deadlines need.")
_RATE = Gauge(
    "replica_rate_lines_per_second",
    "Lines a second that one full replica is counted on for: a lower confidence bound.",
    ["pool", "model"],
)
_AT_RISK = Gauge("batches_at_risk", "Batches whose deadline cannot be held.")
_QUEUED = Gauge("queue_depth", "Lines that wait.", ["pool"])
_PAUSED = Gauge("pool_paused", "1 while an operator has paused the pool, or else 0.", ["pool"])
_MOST = Gauge("autoscaler_max_replicas", "Most replicas that a pool may have.", ["pool"])
_DESIRED = {
    Pool.SPOT: Gauge("autoscaler_desired_spot_replicas", "Replicas that spot wants."),
    Pool.DEDICATED: Gauge(
        "autoscaler_desired_dedicated_replicas", "Replicas that dedicated wants."
    ),
}


def ticked(report: TickReport) -> None:
    """Publish what one tick saw and did."""
    _TICKS.inc()
    _LAST_TICK.set(time.time())
    _REAPED.inc(report.swept.reaped)
    requests.judged(report.swept.in_time, report.swept.late)
    requests.interrupted(report.swept.interrupted)
    requests.buried(report.swept.buried)
    if report.planned is not None:
        _planned(report.planned)
    for (pool, model), rate in report.rates.items():
        _RATE.labels(pool.value, model).set(rate)
    for pool, replicas in report.desired_replicas.items():
        _DESIRED[pool].set(replicas)
    for pool, most in report.most_replicas.items():
        _MOST.labels(pool.value).set(most)


def _planned(planned: Replanned) -> None:
    for pool, lines in planned.waiting.items():
        _QUEUED.labels(pool.value).set(lines)
        _PAUSED.labels(pool.value).set(pool in planned.paused)
    _ESCALATED.inc(planned.escalated)
    _RETURNED.inc(planned.returned)
    _REVOKED.inc(planned.revoked)
    _AT_RISK.set(len(planned.plan.at_risk))
    _WANTED.set(planned.plan.replicas)
    # Nothing open: nothing is late for ever, and a gauge of 0 would look like an alarm.
    _SLACK.set(math.inf if planned.plan.slack is None else planned.plan.slack)

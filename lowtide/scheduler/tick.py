"""One tick of the scheduler, and its metrics."""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from lowtide.core.errors import Unavailable
from lowtide.core.pools import Pool
from lowtide.planning.demand import scaled_replicas
from lowtide.planning.state import decide
from lowtide.queue.metrics import buried, interrupted, judged
from lowtide.scheduler.samples import PoolLevel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lowtide.batches.erasure import Eraser
    from lowtide.events.publisher import Publisher
    from lowtide.objects.store import ObjectStore
    from lowtide.planning.demand import Capacity, PoolScale, Rate
    from lowtide.planning.state import PlanResult, SweepResult
    from lowtide.queue.rates import RateStore
    from lowtide.retention.service import Retention
    from lowtide.scheduler.plan import PlanStore
    from lowtide.scheduler.samples import SampleRecorder
    from lowtide.scheduler.sweep import SweepStore
    from lowtide.search.indexing import SearchIndexer


_log = logging.getLogger(__name__)
_ORPHANS_PER_SET = 200
_ORPHAN_SECONDS = 3.0
_AUDITS_PER_TICK = 1000
_INDEXED_PER_TICK = 100_000
_INDEX_SECONDS = 2.0
_ERASE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class TickRules:
    """Settings of a tick; times in seconds.

    Samples of the pools are kept for `history_kept`, the audit log for `audit_kept`.
    """

    capacity: Capacity
    scales: Mapping[Pool, PoolScale]
    cancel_grace: float
    stalled_after: float
    history_kept: float
    audit_kept: float


@dataclass(frozen=True, slots=True)
class TickReport:
    """The result of a tick.

    `planned` holds the plan, the moves, and the requests that wait; None if another tick was
    planning. `rates` are the requests per second that a replica is counted on for, by pool and
    model.
    """

    swept: SweepResult
    planned: PlanResult | None
    desired_replicas: Mapping[Pool, int]
    rates: Mapping[tuple[Pool, str], float]
    most_replicas: Mapping[Pool, int]


class Scheduler:
    """Keeps promises: releases lost requests, ends expired batches, escalates late ones."""

    def __init__(
        self,
        sweeps: SweepStore,
        plans: PlanStore,
        rates: RateStore,
        recorder: SampleRecorder,
        indexer: SearchIndexer,
        retention: Retention,
        eraser: Eraser,
        objects: ObjectStore,
        publisher: Publisher,
        rules: TickRules,
    ) -> None:
        self._sweeps = sweeps
        self._plans = plans
        self._rates = rates
        self._recorder = recorder
        self._indexer = indexer
        self._retention = retention
        self._eraser = eraser
        self._objects = objects
        self._publisher = publisher
        self._rules = rules

    def tick(self) -> TickReport:
        """Run one tick. Idempotent; concurrent ticks do no harm."""
        # First, since events of requests need the partitions of their batches.
        with _failure_logged_as("partitions.not_made"):
            self._retention.make_partitions()
        sweep_result = self._sweeps.sweep(
            cancel_grace=self._rules.cancel_grace, stalled_after=self._rules.stalled_after
        )
        rates = self._rates.fold()
        plan_result = self._replan(rates)
        self._publisher.resend()
        self._remove_orphans()
        report = TickReport(
            swept=sweep_result,
            planned=plan_result,
            desired_replicas={} if plan_result is None else self._desired(plan_result),
            rates={key: rate.lower_bound(self._rules.capacity.rate) for key, rate in rates.items()},
            most_replicas={pool: scale.replicas for pool, scale in self._rules.scales.items()},
        )
        with _failure_logged_as("history.not_recorded"):
            self._record(report)
        with _failure_logged_as("sessions.not_trimmed"):
            self._sweeps.trim_signed_out()
        with _failure_logged_as("audit.not_trimmed"):
            self._sweeps.trim_audit(retention=self._rules.audit_kept, limit=_AUDITS_PER_TICK)
        with _failure_logged_as("search.not_indexed"):
            self._indexer.index(limit=_INDEXED_PER_TICK, seconds=_INDEX_SECONDS)
        with _failure_logged_as("erasure.failed"):
            self._eraser.erase(seconds=_ERASE_SECONDS)
        self._end_data()
        _log_report(report)
        return report

    def _end_data(self) -> None:
        with _failure_logged_as("tallies.not_folded"):
            self._retention.fold()
        with _failure_logged_as("data.not_ended"):
            self._retention.end_data()
        with _failure_logged_as("records.not_ended"):
            self._retention.end_records()
        with _failure_logged_as("retention.not_measured"):
            self._retention.measure()

    def _replan(self, rates: Mapping[tuple[Pool, str], Rate]) -> PlanResult | None:
        dedicated = {model: rate for (pool, model), rate in rates.items() if pool is Pool.DEDICATED}
        return self._plans.replan(
            lambda state: decide(replace(state, rates=dedicated), self._rules.capacity)
        )

    def _desired(self, plan_result: PlanResult) -> dict[Pool, int]:
        """Return the number of replicas for KEDA; the plan bounds those of dedicated."""
        return {
            pool: scaled_replicas(
                depth,
                self._rules.scales[pool],
                planned=plan_result.plan.replicas if pool is Pool.DEDICATED else None,
                paused=pool in plan_result.paused,
                stranded=plan_result.stranded.get(pool, 0),
            )
            for pool, depth in plan_result.after.items()
        }

    def _record(self, report: TickReport) -> None:
        """Record this minute's sample, unless it exists."""
        plan_result = report.planned
        if plan_result is None:
            return
        levels = {
            pool: PoolLevel(lines, plan_result.before[pool].running, report.desired_replicas[pool])
            for pool, lines in plan_result.waiting.items()
        }
        self._recorder.record(levels, retention=self._rules.history_kept)

    def _remove_orphans(self) -> None:
        """Delete orphans from the object store; a failure is retried at the next tick."""
        end = time.monotonic() + _ORPHAN_SECONDS
        try:
            while True:
                orphans = self._sweeps.orphans(_ORPHANS_PER_SET)
                if orphans.keys:
                    self._objects.delete(orphans.keys)
                    self._sweeps.forget_orphans(orphans.keys)
                    _log.info("objects.removed", extra={"objects": len(orphans.keys)})
                if orphans.is_last or time.monotonic() >= end:
                    return
        except Unavailable as error:
            _log.warning("objects.not_removed", extra={"reason": error.for_log})


@contextmanager
def _failure_logged_as(event: str) -> Iterator[None]:
    """Log a failure of the block as `event`, and go on: the tick's own work is done without it."""
    try:
        yield
    except Unavailable as error:
        _log.warning(event, extra={"reason": error.for_log})
    except Exception:  # noqa: BLE001 - a tick that answers 500 does all its work again
        _log.exception(event)


def _log_report(report: TickReport) -> None:
    plan_result = report.planned
    fields = {
        "reaped": report.swept.reaped,
        "escalated": plan_result.escalated if plan_result else 0,
        "revoked": plan_result.revoked if plan_result else 0,
        "returned": plan_result.returned if plan_result else 0,
        "at_risk": len(plan_result.plan.at_risk) if plan_result else 0,
    }
    if any(fields.values()):
        _log.info("tick", extra=fields)


_TICKS = Counter("scheduler_ticks_total", "Completed ticks.")
_LAST_TICK = Gauge("scheduler_last_tick_timestamp_seconds", "Time of the last completed tick.")
_REAPED = Counter("leases_reaped_lines_total", "Requests released from expired leases.")
_ESCALATED = Counter("escalations_total", "Requests moved to dedicated.")
_RETURNED = Counter("deescalations_total", "Requests moved back to spot before dedicated ran them.")
_REVOKED = Counter("revocations_total", "Requests revoked from spot workers for dedicated.")
_SLACK = Gauge(
    "batch_deadline_slack_seconds",
    "Min time, over all open batches, until all dedicated replicas must run; below 0, a "
    "deadline cannot be met.",
)
_PLANNED_REPLICAS = Gauge(
    "dedicated_replicas_planned", "Dedicated replicas needed to meet the deadlines."
)
_RATE = Gauge(
    "replica_rate_lines_per_second",
    "Requests per second that plans assume of one full replica: a lower confidence bound.",
    ["pool", "model"],
)
_AT_RISK = Gauge("batches_at_risk", "Batches whose deadline cannot be met.")
_QUEUED = Gauge("queue_depth", "Queued requests.", ["pool"])
_PAUSED = Gauge("pool_paused", "1 while the pool is paused, else 0.", ["pool"])
_MAX_REPLICAS = Gauge("autoscaler_max_replicas", "Max replicas of the pool.", ["pool"])
_DESIRED = {
    Pool.SPOT: Gauge("autoscaler_desired_spot_replicas", "Desired spot replicas."),
    Pool.DEDICATED: Gauge("autoscaler_desired_dedicated_replicas", "Desired dedicated replicas."),
}


def ticked(report: TickReport) -> None:
    """Publish the metrics of one tick."""
    _TICKS.inc()
    _LAST_TICK.set(time.time())
    _REAPED.inc(report.swept.reaped)
    judged(report.swept.in_time, report.swept.late)
    interrupted(report.swept.interrupted)
    buried(report.swept.buried)
    if report.planned is not None:
        _publish_plan(report.planned)
    for (pool, model), rate in report.rates.items():
        _RATE.labels(pool.value, model).set(rate)
    for pool, replicas in report.desired_replicas.items():
        _DESIRED[pool].set(replicas)
    for pool, max_replicas in report.most_replicas.items():
        _MAX_REPLICAS.labels(pool.value).set(max_replicas)


def _publish_plan(plan_result: PlanResult) -> None:
    for pool, lines in plan_result.waiting.items():
        _QUEUED.labels(pool.value).set(lines)
        _PAUSED.labels(pool.value).set(pool in plan_result.paused)
    _ESCALATED.inc(plan_result.escalated)
    _RETURNED.inc(plan_result.returned)
    _REVOKED.inc(plan_result.revoked)
    _AT_RISK.set(len(plan_result.plan.at_risk))
    _PLANNED_REPLICAS.set(plan_result.plan.replicas)
    # With no open batch nothing can ever be late, and a gauge of 0 would look like an alarm.
    _SLACK.set(math.inf if plan_result.plan.slack is None else plan_result.plan.slack)

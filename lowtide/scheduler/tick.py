"""One tick of the scheduler, and its metrics."""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from lowtide.batches.workload import NO_CAPACITY
from lowtide.core.errors import Unavailable
from lowtide.core.pools import FleetPool, Pool
from lowtide.planning.demand import Capacity, PoolScale, scaled_replicas
from lowtide.planning.fallback import fall_back
from lowtide.planning.state import decide
from lowtide.queue.metrics import buried, interrupted, judged
from lowtide.scheduler.samples import PoolLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from lowtide.batches.erasure import Eraser
    from lowtide.core.ids import BatchId
    from lowtide.events.publisher import Publisher
    from lowtide.objects.store import ObjectStore
    from lowtide.planning.demand import Rate
    from lowtide.planning.escalation import Plan
    from lowtide.planning.fallback import FleetMove
    from lowtide.planning.state import PlanResult, SchedulerState, SweepResult
    from lowtide.queue.rates import Rates, RateStore
    from lowtide.retention.service import Retention
    from lowtide.scheduler.plan import PlanStore
    from lowtide.scheduler.samples import SampleRecorder
    from lowtide.scheduler.sweep import SweepStore
    from lowtide.search.indexing import SearchIndexer
    from lowtide.tenants.quotas import QuotaStore


_log = logging.getLogger(__name__)
_ORPHANS_PER_SET = 200
_ORPHAN_SECONDS = 3.0
_AUDITS_PER_TICK = 1000
_INDEXED_PER_TICK = 100_000
_INDEX_SECONDS = 2.0
_ERASE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class FleetRules:
    """The capacity of a fleet's dedicated pool, the scaling of each pool, and the fallback's name."""

    capacity: Capacity
    scales: Mapping[Pool, PoolScale]
    fallback: str | None = None


_UNDECLARED = FleetRules(
    NO_CAPACITY.dedicated,
    {pool: PoolScale(1, 0) for pool in Pool},
)
"""Those of a fleet that is no longer declared, whose workers go."""


@dataclass(frozen=True, slots=True)
class TickRules:
    """Settings of a tick; times in seconds.

    Samples of the pools are kept for `history_kept`, the audit log for `audit_kept`.
    """

    fleets: Mapping[str, FleetRules]
    cancel_grace: float
    stalled_after: float
    history_kept: float
    audit_kept: float

    @property
    def fallbacks(self) -> dict[str, str]:
        """The fallbacks of the fleets that have one."""
        return {
            name: rules.fallback
            for name, rules in self.fleets.items()
            if rules.fallback is not None
        }


@dataclass(frozen=True, slots=True)
class TickReport:
    """The result of a tick.

    `planned` holds the plan, the moves, and the requests that wait, by fleet; None if another tick
    was planning. `rates` are the requests per second that a replica is counted on for, by fleet,
    pool and model.
    """

    swept: SweepResult
    planned: Mapping[str, PlanResult] | None
    desired_replicas: Mapping[FleetPool, int]
    rates: Mapping[tuple[str, Pool, str], float]
    most_replicas: Mapping[FleetPool, int]


class Scheduler:
    """Keeps promises: releases lost requests, ends expired batches, escalates late ones."""

    def __init__(
        self,
        sweeps: SweepStore,
        plans: PlanStore,
        rates: RateStore,
        quotas: QuotaStore,
        recorder: SampleRecorder,
        indexer: SearchIndexer,
        retention: Retention,
        eraser: Eraser,
        objects: ObjectStore,
        publishers: Sequence[Publisher],
        rules: TickRules,
        mirror: Callable[[], None],
        check_ledger: Callable[[], None] = lambda: None,
    ) -> None:
        self._check_ledger = check_ledger
        self._mirror = mirror
        self._is_mirrored = False
        self._sweeps = sweeps
        self._plans = plans
        self._rates = rates
        self._quotas = quotas
        self._recorder = recorder
        self._indexer = indexer
        self._retention = retention
        self._eraser = eraser
        self._objects = objects
        self._publishers = publishers
        self._rules = rules

    def tick(self) -> TickReport:
        """Run one tick. Idempotent; concurrent ticks do no harm."""
        self._mirror_fleets()
        # Before any work on batches that have moved to another cell.
        with _failure_logged_as("ledger.not_checked"):
            self._check_ledger()
        # First, since events of requests need the partitions of their batches.
        with _failure_logged_as("partitions.not_made"):
            self._retention.make_partitions()
        sweep_result = self._sweeps.sweep(
            cancel_grace=self._rules.cancel_grace, stalled_after=self._rules.stalled_after
        )
        rates = self._rates.fold()
        with _failure_logged_as("quotas.not_noted"):
            self._note_quotas()
        plan_result = self._replan(rates)
        for publisher in self._publishers:
            publisher.resend()
        self._remove_orphans()
        report = TickReport(
            swept=sweep_result,
            planned=plan_result,
            desired_replicas={} if plan_result is None else self._desired(plan_result),
            rates={
                key: rate.lower_bound(self._fleet(key[0]).capacity.rate)
                for key, rate in rates.items()
            },
            most_replicas={
                FleetPool(fleet, pool): scale.replicas
                for fleet, rules in self._rules.fleets.items()
                for pool, scale in rules.scales.items()
            },
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

    def _note_quotas(self) -> None:
        if used_up := self._quotas.note_used_up():
            _log.info("quotas.used_up", extra={"quotas": used_up})

    def _mirror_fleets(self) -> None:
        """Record the declared fleets, once in the life of a process."""
        if not self._is_mirrored:
            self._mirror()
            self._is_mirrored = True

    def _end_data(self) -> None:
        with _failure_logged_as("tallies.not_folded"):
            self._retention.fold()
        with _failure_logged_as("data.not_ended"):
            self._retention.end_data()
        with _failure_logged_as("records.not_ended"):
            self._retention.end_records()
        with _failure_logged_as("retention.not_measured"):
            self._retention.measure()

    def _fleet(self, name: str) -> FleetRules:
        return self._rules.fleets.get(name, _UNDECLARED)

    def _replan(self, rates: Rates) -> dict[str, PlanResult] | None:
        dedicated: dict[str, dict[str, Rate]] = {}
        for (fleet, pool, model), rate in rates.items():
            if pool is Pool.DEDICATED:
                dedicated.setdefault(fleet, {})[model] = rate

        def measured(state: SchedulerState) -> SchedulerState:
            return replace(state, rates=dedicated.get(state.fleet, {}))

        def plan(state: SchedulerState) -> Plan:
            return decide(measured(state), self._fleet(state.fleet).capacity)

        def move(
            states: Mapping[str, SchedulerState], plans: Mapping[str, Plan]
        ) -> Sequence[FleetMove]:
            known = {name: measured(state) for name, state in states.items()}
            capacities = {name: self._fleet(name).capacity for name in states}
            return fall_back(known, plans, capacities, self._rules.fallbacks)

        return self._plans.replan(plan, move)

    def _desired(self, planned: Mapping[str, PlanResult]) -> dict[FleetPool, int]:
        """Return the number of replicas for KEDA; the plan bounds those of dedicated."""
        return {
            FleetPool(fleet, pool): scaled_replicas(
                depth,
                self._fleet(fleet).scales[pool],
                planned=result.plan.replicas if pool is Pool.DEDICATED else None,
                paused=pool in result.paused,
                stranded=result.stranded.get(pool, 0),
            )
            for fleet, result in planned.items()
            for pool, depth in result.after.items()
        }

    def _record(self, report: TickReport) -> None:
        """Record this minute's sample, unless it exists."""
        if report.planned is None:
            return
        levels = {
            (place := FleetPool(fleet, pool)): PoolLevel(
                lines, result.before[pool].running, report.desired_replicas[place]
            )
            for fleet, result in report.planned.items()
            for pool, lines in result.waiting.items()
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
    results = (report.planned or {}).values()
    fields = {
        "reaped": report.swept.reaped,
        "escalated": sum(result.escalated for result in results),
        "revoked": sum(result.revoked for result in results),
        "returned": sum(result.returned for result in results),
        "fell_back": sum(result.fell_back for result in results),
        "at_risk": len(_at_risk(results)),
    }
    if any(fields.values()):
        _log.info("tick", extra=fields)


_TICKS = Counter("scheduler_ticks_total", "Completed ticks.")
_LAST_TICK = Gauge("scheduler_last_tick_timestamp_seconds", "Time of the last completed tick.")
_REAPED = Counter("leases_reaped_lines_total", "Requests released from expired leases.")
_ESCALATED = Counter("escalations_total", "Requests moved to dedicated.")
_RETURNED = Counter("deescalations_total", "Requests moved back to spot before dedicated ran them.")
_FELL_BACK = Counter("fallbacks_total", "Requests moved to another fleet.", ["fleet"])
_REVOKED = Counter("revocations_total", "Requests revoked from spot workers for dedicated.")
_SLACK = Gauge(
    "batch_deadline_slack_seconds",
    "Min time, over all open batches of the fleet, until all its dedicated replicas must run; below "
    "0, a deadline cannot be met.",
    ["fleet"],
)
_PLANNED_REPLICAS = Gauge(
    "dedicated_replicas_planned", "Dedicated replicas needed to meet the deadlines.", ["fleet"]
)
_RATE = Gauge(
    "replica_rate_lines_per_second",
    "Requests per second that plans assume of one full replica: a lower confidence bound.",
    ["fleet", "pool", "model"],
)
_AT_RISK = Gauge("batches_at_risk", "Batches whose deadline cannot be met.")
_QUEUED = Gauge("queue_depth", "Queued requests.", ["fleet", "pool"])
_PAUSED = Gauge("pool_paused", "1 while the pool is paused, else 0.", ["fleet", "pool"])
_MAX_REPLICAS = Gauge("autoscaler_max_replicas", "Max replicas of the pool.", ["fleet", "pool"])
_DESIRED = {
    Pool.SPOT: Gauge("autoscaler_desired_spot_replicas", "Desired spot replicas.", ["fleet"]),
    Pool.DEDICATED: Gauge(
        "autoscaler_desired_dedicated_replicas", "Desired dedicated replicas.", ["fleet"]
    ),
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
        _AT_RISK.set(len(_at_risk(report.planned.values())))
        for fleet, result in report.planned.items():
            _publish_plan(fleet, result)
    for (fleet, pool, model), rate in report.rates.items():
        _RATE.labels(fleet, pool.value, model).set(rate)
    for place, replicas in report.desired_replicas.items():
        _DESIRED[place.pool].labels(place.fleet).set(replicas)
    for place, max_replicas in report.most_replicas.items():
        _MAX_REPLICAS.labels(place.fleet, place.pool.value).set(max_replicas)


def _publish_plan(fleet: str, result: PlanResult) -> None:
    for pool, lines in result.waiting.items():
        _QUEUED.labels(fleet, pool.value).set(lines)
        _PAUSED.labels(fleet, pool.value).set(pool in result.paused)
    _ESCALATED.inc(result.escalated)
    _RETURNED.inc(result.returned)
    _REVOKED.inc(result.revoked)
    _FELL_BACK.labels(fleet).inc(result.fell_back)
    _PLANNED_REPLICAS.labels(fleet).set(result.plan.replicas)
    # With no open batch nothing can ever be late, and a gauge of 0 would look like an alarm.
    _SLACK.labels(fleet).set(math.inf if result.plan.slack is None else result.plan.slack)


def _at_risk(results: Iterable[PlanResult]) -> set[BatchId]:
    return {batch for result in results for batch in result.plan.at_risk}

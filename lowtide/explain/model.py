"""The facts about a batch, and the factor that limits or limited it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeVar

from lowtide.batches.model import FINAL_STATUSES, BatchStatus
from lowtide.core.pools import Depth, Pool
from lowtide.planning.reasons import Reason

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.batches.model import Batch
    from lowtide.batches.workload import FleetCapacity, Forecast, Workload


class Factor(StrEnum):
    """A factor that delays a batch."""

    VALIDATING = "validating"
    AWAITING_EVENTS = "awaiting_events"
    SCHEDULER_LATE = "scheduler_late"
    POOL_PAUSED = "pool_paused"
    ENGINE_AWAY = "engine_away"
    NO_WORKERS = "no_workers"
    COLD_START = "cold_start"
    QUOTA = "quota"
    TENANT_LIMIT = "tenant_limit"
    RETRIES = "retries"
    INTERRUPTIONS = "interruptions"
    QUEUE_AHEAD = "queue_ahead"
    DEADLINE_BOUND = "deadline_bound"
    POOL_BOUND = "pool_bound"
    ENGINE_SPEED = "engine_speed"
    FINALIZING = "finalizing"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


Numbers = Mapping[str, int | float | str]


@dataclass(frozen=True, slots=True)
class Finding:
    """A factor with its numbers; `lowtide.explain.words` has its sentence."""

    factor: Factor
    numbers: Numbers


@dataclass(frozen=True, slots=True)
class Advice:
    """A change that speeds a batch up: the opposite of a factor, and the likely end with it."""

    factor: Factor
    numbers: Numbers
    end: datetime | None


@dataclass(frozen=True, slots=True)
class Mark:
    """The scheduler's moves or marks of one kind, for one reason, since `since`."""

    kind: str
    reason: Reason | None
    lines: int
    since: datetime


NOTHING: Final = Depth(0, 0)


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a batch at the workload's time.

    `workload` and `fleet` are those of the fleet that ends its last request; `fleet_name` names that
    fleet where there are several. `depths` counts its requests in each pool of the fleet, and
    `elsewhere` those in other fleets; `delayed` of all wait for their retry. Its tenant
    has `tenant_running` running requests of at most `limit`, and has used up the quota named in
    `used_up` for that many seconds. `running_seconds` is the time that its
    results took together; `waited` is the mean time from the split until a request started, and
    `first_start` the first start. `planned_at` is the time of the scheduler's last plan, None before
    the first. `earlier` holds the requests per second of the last runs of the same user and model.
    """

    batch: Batch
    workload: Workload
    fleet: FleetCapacity
    depths: Mapping[Pool, Depth]
    delayed: int = 0
    limit: int | None = None
    tenant_running: int = 0
    used_up: tuple[str, float] | None = None
    running_seconds: float = 0.0
    waited: float | None = None
    first_start: datetime | None = None
    planned_at: datetime | None = None
    marks: tuple[Mark, ...] = ()
    earlier: tuple[float, ...] = ()
    fleet_name: str | None = None
    elsewhere: Depth = NOTHING

    @property
    def at(self) -> datetime:
        """The time of the facts."""
        return self.workload.at

    @property
    def ended(self) -> int:
        """The number of requests that ran and have a result."""
        return self.batch.outcomes.completed + self.batch.outcomes.failed

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return self.elsewhere.queued + sum(depth.queued for depth in self.depths.values())

    @property
    def running(self) -> int:
        """The number of requests that run."""
        return self.elsewhere.running + sum(depth.running for depth in self.depths.values())

    @property
    def pool(self) -> Pool:
        """The fleet's pool in which most of the open requests wait, or else run."""
        counts = {pool: (depth.queued, depth.running) for pool, depth in self.depths.items()}
        first = self.batch.pool
        return max(counts, key=lambda pool: (counts[pool], pool is first), default=first)

    @property
    def request_seconds(self) -> float | None:
        """The mean time from claim to result; None without results."""
        return self.running_seconds / self.ended if self.ended else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The requests per second of a batch from its split on, and the median of `runs` earlier runs."""

    rate: float
    usual: float
    runs: int

    @property
    def ratio(self) -> float:
        """The rate as a share of the usual one."""
        return self.rate / self.usual


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a batch.

    `rate` is in requests per second: now while it runs, else its mean; `input_token_rate` and
    `output_token_rate` are its tokens per second, by the mean of a request. `waited` and
    `request_seconds` are the mean times that a request waited and ran; `first_wait` is the time from
    the split to the first start. `retry_share` is the share of attempts that failed and were repeated.
    """

    batch: Batch
    at: datetime
    limiting: Finding
    contributing: tuple[Finding, ...] = ()
    forecast: Forecast | None = None
    rate: float | None = None
    input_token_rate: float | None = None
    output_token_rate: float | None = None
    waiting: int = 0
    running: int = 0
    waited: float | None = None
    request_seconds: float | None = None
    first_wait: float | None = None
    retry_share: float = 0.0
    advice: tuple[Advice, ...] = ()
    comparison: Comparison | None = None

    @property
    def waiting_share(self) -> float | None:
        """The share of a request's time that it waited."""
        if self.waited is None or self.request_seconds is None:
            return None
        whole = self.waited + self.request_seconds
        return self.waited / whole if whole > 0 else 0.0


_Named = TypeVar("_Named", Finding, Advice)
AWAITED: Final = 60.0
"""Seconds after which the next step of a batch should have begun, and its event is overdue."""
SILENCE: Final = 120.0
"""Seconds without a plan after which the scheduler is late; it ticks every 10 s."""
LARGE: Final = 0.5
"""Share of the time, or of the requests, from which a factor is the one that limits."""
FREQUENT: Final = 1 / 3
"""Share of attempts that fail or are interrupted, from which they limit a batch."""
NOTABLE: Final = 0.05
"""Share from which a factor is worth mentioning."""


def explain(facts: Facts) -> Explanation:
    """Return what limits a batch that is open, or limited one that has ended."""
    batch = facts.batch
    has_ended = batch.status in FINAL_STATUSES
    findings = _of_ended(facts) if has_ended else _of_open(facts)
    limiting, *others = findings
    forecast = facts.workload.forecast(batch, facts.fleet)
    rate = _mean_rate(facts) if has_ended else _rate_now(facts)
    return Explanation(
        batch=batch,
        at=facts.at,
        limiting=_of_fleet(facts, limiting),
        contributing=tuple(_of_fleet(facts, each) for each in _distinct(limiting, others)),
        forecast=forecast,
        rate=rate,
        input_token_rate=_token_rate(facts, rate, batch.input_tokens),
        output_token_rate=_token_rate(facts, rate, batch.output_tokens),
        waiting=facts.waiting,
        running=facts.running,
        waited=facts.waited,
        request_seconds=facts.request_seconds,
        first_wait=_first_wait(facts),
        retry_share=_share(batch.retries, facts.ended + batch.retries),
        advice=()
        if forecast is None
        else tuple(_of_fleet(facts, each) for each in _advice(facts, findings)),
        comparison=_comparison(facts),
    )


def _of_fleet(facts: Facts, named: _Named) -> _Named:
    """Return what names a pool with the name of its fleet, where there are several."""
    if facts.fleet_name is None or "pool" not in named.numbers:
        return named
    return replace(named, numbers={**named.numbers, "fleet": facts.fleet_name})


def _distinct(limiting: Finding, others: list[Finding]) -> list[Finding]:
    """Return one finding of each other factor."""
    by_factor = {finding.factor: finding for finding in reversed(others)}
    by_factor.pop(limiting.factor, None)
    return [by_factor[factor] for factor in Factor if factor in by_factor]


def _of_open(facts: Facts) -> list[Finding]:
    """Return the findings of a batch that has not ended, the limiting one first."""
    batch = facts.batch
    if batch.status is BatchStatus.CANCELLING:
        return [Finding(Factor.CANCELLED, {"running": facts.running})]
    if batch.status is BatchStatus.VALIDATING:
        return [_step(facts, Factor.VALIDATING, batch.created_at)]
    if batch.status is BatchStatus.FINALIZING:
        return [_step(facts, Factor.FINALIZING, batch.finalizing_at or batch.created_at)]
    if facts.waiting + facts.running == 0:
        return [Finding(Factor.FINALIZING, {"seconds": 0.0})]
    found = _quota(facts) or [*_obstacles(facts), *_limits(facts)]
    if facts.planned_at is not None:
        silence = (facts.at - facts.planned_at).total_seconds()
        if silence > SILENCE:
            found.append(Finding(Factor.SCHEDULER_LATE, {"seconds": silence}))
    return found


def _quota(facts: Facts) -> list[Finding]:
    if facts.used_up is None or not facts.waiting:
        return []
    quota, seconds = facts.used_up
    return [Finding(Factor.QUOTA, {"quota": quota, "seconds": seconds, "waiting": facts.waiting})]


def _step(facts: Facts, factor: Factor, since: datetime) -> Finding:
    """Return the step that a batch is in, or the event that it waits for."""
    seconds = (facts.at - since).total_seconds()
    step = factor if seconds < AWAITED else Factor.AWAITING_EVENTS
    return Finding(step, {"seconds": seconds})


def _obstacles(facts: Facts) -> list[Finding]:
    """Return what keeps the pool with most of the open requests, and then the others, from running."""
    first = facts.pool
    pools = sorted(facts.depths, key=lambda pool: pool is not first)
    found = [
        finding
        for pool in pools
        if facts.depths[pool].queued + facts.depths[pool].running > 0
        and (finding := _obstacle(facts, pool)) is not None
    ]
    # The pool that holds most of the requests runs: the other one only contributes.
    if found and found[0].numbers["pool"] != first.value:
        return [*_limits(facts)[:1], *found]
    return found


def _obstacle(facts: Facts, pool: Pool) -> Finding | None:
    workload, depth = facts.workload, facts.depths[pool]
    workers = workload.of(pool)
    numbers: dict[str, int | float | str] = {"pool": pool.value, "waiting": depth.queued}
    if pool in workload.paused:
        return Finding(Factor.POOL_PAUSED, numbers) if depth.queued else None
    if workers.is_stranded:
        return Finding(Factor.ENGINE_AWAY, numbers | {"workers": workers.away})
    if workers.ready:
        return None
    since = facts.batch.in_progress_at or facts.batch.created_at
    age = (facts.at - since).total_seconds()
    cold_start = facts.fleet.dedicated.cold_start
    if workers.starting or age < cold_start:
        return Finding(
            Factor.COLD_START,
            numbers | {"starting": workers.starting, "seconds": cold_start},
        )
    if pool is Pool.DEDICATED and facts.planned_at is not None:
        silence = (facts.at - facts.planned_at).total_seconds()
        if silence > SILENCE:
            return Finding(Factor.SCHEDULER_LATE, {"pool": pool.value, "seconds": silence})
    return Finding(Factor.NO_WORKERS, numbers | {"max": _max_replicas(facts, pool)})


def _limits(facts: Facts) -> list[Finding]:
    """Return what limits a batch whose requests can run, strongest first."""
    batch, depth = facts.batch, facts.depths[facts.pool]
    found = []
    if facts.limit is not None and facts.waiting and facts.tenant_running >= 0.9 * facts.limit:
        numbers = {"limit": facts.limit, "running": facts.tenant_running, "waiting": facts.waiting}
        found.append(Finding(Factor.TENANT_LIMIT, numbers))
    found += _repetitions(facts, FREQUENT)
    if facts.delayed >= LARGE * (facts.waiting + facts.running):
        found.insert(0, Finding(Factor.RETRIES, _retries(facts)))
    if facts.waiting == 0:
        found.append(_engine_speed(facts))
    if (ahead := _ahead(facts)) is not None and ahead[1] >= LARGE:
        found.append(ahead[0])
    if batch.risk is not None and batch.risk.reason is Reason.DEADLINE_BOUND:
        numbers = {} if batch.risk.bound is None else asdict(batch.risk.bound)
        found.append(Finding(Factor.DEADLINE_BOUND, numbers))
    if depth.queued:
        found.append(_pool_bound(facts))
    if ahead is not None and NOTABLE <= ahead[1] < LARGE:
        found.append(ahead[0])
    found += _repetitions(facts, NOTABLE)
    return found or [_engine_speed(facts)]


def _repetitions(facts: Facts, least: float) -> list[Finding]:
    """Return retries and interruptions that are at least this share of all attempts."""
    batch = facts.batch
    found = []
    if _share(batch.retries, facts.ended + batch.retries) >= least:
        found.append(Finding(Factor.RETRIES, _retries(facts)))
    if _share(batch.interruptions, facts.ended + batch.interruptions) >= least:
        numbers = {"interruptions": batch.interruptions, "ended": facts.ended}
        found.append(Finding(Factor.INTERRUPTIONS, numbers))
    return found


def _retries(facts: Facts) -> Numbers:
    return {"retries": facts.batch.retries, "ended": facts.ended, "delayed": facts.delayed}


def _engine_speed(facts: Facts) -> Finding:
    numbers: dict[str, int | float | str] = {"running": facts.running}
    if (seconds := facts.request_seconds) is not None:
        numbers["seconds"] = seconds
    return Finding(Factor.ENGINE_SPEED, numbers)


def _ahead(facts: Facts) -> tuple[Finding, float] | None:
    """Return the requests that are served before the batch's last one, and their share."""
    forecast = facts.workload.forecast(facts.batch, facts.fleet)
    if forecast is None or forecast.own + forecast.others == 0:
        return None
    ahead = forecast.own + forecast.others
    numbers = {"own": forecast.own, "others": forecast.others, "waiting": facts.waiting}
    return Finding(Factor.QUEUE_AHEAD, numbers), ahead / (ahead + facts.waiting + facts.running)


def _pool_bound(facts: Facts) -> Finding:
    pool = facts.pool
    numbers: dict[str, int | float | str] = {
        "pool": pool.value,
        "workers": facts.workload.of(pool).ready,
        "wanted": facts.workload.wanted(pool, facts.fleet),
        "max": _max_replicas(facts, pool),
    }
    return Finding(Factor.POOL_BOUND, numbers)


def _max_replicas(facts: Facts, pool: Pool) -> int:
    spot = facts.fleet.spot
    if pool is Pool.DEDICATED:
        return facts.fleet.dedicated.replicas
    return 0 if spot is None else spot.replicas


_BLOCKED_BY: Final = {
    Reason.POOL_PAUSED: Factor.POOL_PAUSED,
    Reason.ENGINE_AWAY: Factor.ENGINE_AWAY,
    Reason.NO_DEDICATED: Factor.NO_WORKERS,
}


def _of_ended(facts: Facts) -> list[Finding]:
    """Return what limited a batch, from its records."""
    batch = facts.batch
    if batch.status is BatchStatus.FAILED:
        return [Finding(Factor.REJECTED, {"problems": len(batch.errors)})]
    if batch.status is BatchStatus.CANCELLED:
        return [Finding(Factor.CANCELLED, {"running": 0})]
    found = _repetitions(facts, FREQUENT)
    risks = [mark.reason for mark in facts.marks if mark.kind == "at_risk"]
    if batch.risk is not None:
        risks.append(batch.risk.reason)
    dedicated: Numbers = {"pool": Pool.DEDICATED.value}
    found += [
        Finding(factor, dedicated) for reason, factor in _BLOCKED_BY.items() if reason in risks
    ]
    if Reason.DEADLINE_BOUND in risks:
        bound = None if batch.risk is None else batch.risk.bound
        found.append(Finding(Factor.DEADLINE_BOUND, {} if bound is None else asdict(bound)))
    seconds = _seconds(facts)
    if (wait := _first_wait(facts)) is not None and seconds and wait >= LARGE * seconds:
        found.append(Finding(Factor.QUEUE_AHEAD, {"seconds": wait}))
    if facts.limit is not None and seconds:
        running = facts.running_seconds / seconds
        if running >= 0.8 * min(facts.limit, batch.total):
            used = {"limit": facts.limit, "running": round(running)}
            found.append(Finding(Factor.TENANT_LIMIT, used))
    request = facts.request_seconds
    if request is None or not seconds or request >= LARGE * seconds:
        found.append(_engine_speed(facts))
    else:
        pool = Pool.DEDICATED if batch.finished_on_dedicated > facts.ended / 2 else Pool.SPOT
        found.append(Finding(Factor.POOL_BOUND, {"pool": pool.value}))
    return found + _repetitions(facts, NOTABLE)


def _advice(facts: Facts, findings: list[Finding]) -> tuple[Advice, ...]:
    """Return what would speed the batch up, each change by itself."""
    changes: dict[object, Advice] = {}
    for finding in findings:
        changed = _without(facts, finding)
        if changed is None:
            continue
        numbers, workload = changed
        forecast = workload.forecast(facts.batch, facts.fleet)
        end = None if forecast is None else forecast.likely
        # Several factors may be those of one change.
        key = (frozenset(numbers.items()), end)
        changes.setdefault(key, Advice(finding.factor, numbers, end))
    return tuple(changes.values())


def _without(facts: Facts, finding: Finding) -> tuple[Numbers, Workload] | None:
    """Return the workload without a factor, and the numbers of the change; None if it stays."""
    workload, numbers = facts.workload, finding.numbers
    match finding.factor:
        case Factor.TENANT_LIMIT:
            mine = workload.work_of(facts.batch).sharer
            work = tuple(
                replace(each, max_running=None) if each.sharer == mine else each
                for each in workload.work
            )
            changed = replace(workload, work=work)
        case Factor.RETRIES:
            work = tuple(replace(each, retried=0, last_at=None) for each in workload.work)
            changed = replace(workload, work=work)
        case Factor.POOL_PAUSED:
            changed = replace(workload, paused=workload.paused - {Pool(str(numbers["pool"]))})
        case Factor.ENGINE_AWAY:
            changed = _with_workers(facts, Pool(str(numbers["pool"])), int(numbers["workers"]))
        case Factor.NO_WORKERS:
            changed = _with_workers(facts, Pool(str(numbers["pool"])), max(1, int(numbers["max"])))
        case Factor.QUEUE_AHEAD | Factor.DEADLINE_BOUND | Factor.POOL_BOUND:
            present = _max_replicas(facts, facts.pool)
            more = 2 * max(1, present)
            numbers = {"pool": facts.pool.value, "max": present, "more": more}
            changed = _with_workers(facts, facts.pool, more)
        case _:
            return None
    return numbers, changed


def _with_workers(facts: Facts, pool: Pool, ready: int) -> Workload:
    workload = facts.workload
    workers = replace(workload.of(pool), ready=ready, away=0)
    return replace(workload, workers={**workload.workers, pool: workers})


def _rate_now(facts: Facts) -> float | None:
    """Return the requests per second that end now: running requests by their mean time."""
    if facts.running == 0:
        return 0.0
    seconds = facts.request_seconds
    return facts.running / seconds if seconds else None


def _token_rate(facts: Facts, rate: float | None, tokens: int) -> float | None:
    """Return the tokens per second at so many requests per second; None without any result."""
    return None if rate is None or not facts.ended else rate * tokens / facts.ended


def _seconds(facts: Facts) -> float | None:
    """Return the seconds from the split until the last result, or until now."""
    batch = facts.batch
    if batch.in_progress_at is None:
        return None
    end = batch.finalizing_at or batch.ended_at or facts.at
    return max(0.0, (end - batch.in_progress_at).total_seconds())


def _mean_rate(facts: Facts) -> float | None:
    seconds = _seconds(facts)
    return facts.ended / seconds if seconds else None


def _first_wait(facts: Facts) -> float | None:
    if facts.first_start is None or facts.batch.in_progress_at is None:
        return None
    return max(0.0, (facts.first_start - facts.batch.in_progress_at).total_seconds())


def _comparison(facts: Facts) -> Comparison | None:
    rate = _mean_rate(facts)
    if rate is None or not facts.ended or not facts.earlier:
        return None
    # Its imports would slow the cold start of every function.
    from statistics import median

    return Comparison(rate, median(facts.earlier), len(facts.earlier))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0

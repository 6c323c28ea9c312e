"""The open work of all tenants and their workers, and the expected end of a batch among them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Final

from lowtide.batches.model import BatchStatus
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.planning.completion import Contender, Replicas, Turn, seconds_to_run, turn_of
from lowtide.planning.demand import Capacity, Demand, Rate, attempts_per_line
from lowtide.planning.state import SchedulerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.batches.model import Batch
    from lowtide.planning.demand import PoolScale


_MIXED: Final = ""


@dataclass(frozen=True, slots=True)
class OpenWork:
    """The open requests of a batch; a model of None is not known yet.

    `lines` counts requests without a result; `ended` and `retried` count those so far, which ran for
    `running_seconds` in all; the last one becomes available at `last_at`. `sharer` stands for its
    tenant, with `weight` and at most `max_running` running requests. Requests of a `pinned` batch run on dedicated only.
    `barrier` is as of `Queued`, as a time.
    """

    deadline: datetime
    model: str | None
    lines: int
    ended: int = 0
    retried: int = 0
    running_seconds: float = 0.0
    sharer: int = 0
    weight: int = 1
    max_running: int | None = None
    at_risk: bool = False
    pinned: bool = False
    last_at: datetime | None = None
    priority: int = 0
    barrier: datetime | None = None


@dataclass(frozen=True, slots=True)
class PoolWorkers:
    """The live workers of a pool: ready, without an available engine, and with a starting engine."""

    ready: int = 0
    away: int = 0
    starting: int = 0

    @property
    def is_stranded(self) -> bool:
        """True if there are workers, and the engine of none is available."""
        return self.away > 0 and self.ready == 0 and self.starting == 0


@dataclass(frozen=True, slots=True)
class FleetCapacity:
    """The configured capacity of dedicated, the scaling of spot, and the mean delay of a retry.

    A `spot` of None is no spot.
    """

    dedicated: Capacity
    spot: PoolScale | None = None
    retry_delay: float = 0.0


NO_CAPACITY: Final = FleetCapacity(
    Capacity(rate=1.0, replicas=0, cold_start=0.0, margin=0.0, tick=1.0)
)
"""That of a fleet that is no longer declared."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected end of a batch: nine of ten end between `low` and `high`.

    Before its last request, `own` other requests of its tenant and `others` of other tenants are
    served. The tenant's limit sets the end if `is_limited`; `by_deadline` is True if the end is that
    of the scheduler's plan: dedicated takes over as late as the deadline allows. Without spot
    capacity and dedicated, the end is unknown: None.
    """

    low: datetime | None = None
    likely: datetime | None = None
    high: datetime | None = None
    own: int = 0
    others: int = 0
    is_limited: bool = False
    by_deadline: bool = False


QUANTILE: Final = 1.645
"""Standard deviations to each side of the likely end that hold nine of ten ends."""
UNMEASURED: Final = 0.4
"""Relative error of the configured rate, before any is measured."""
SOONER: Final = 0.18
LATER: Final = 0.22
"""Relative variation of spot capacity and of competing work until the end of a batch.

Workers that leave and work that arrives delay a batch more than the opposite speeds it up. Simulated
runs fit the values, tests/explain/test_calibration.py checks them with other runs.
"""
CROWD: Final = 0.5
"""The variation grows by up to this share with the open work of other batches."""


@dataclass(frozen=True)
class Workload:
    """A fleet's part of the open work, its workers and their rates, at the database's time `at`.

    `rates` are measured, by pool and model ("" for several); `concurrency` is what the last search of
    a pool for its requests in flight found. Workers of `paused` pools finish their claims and claim
    nothing more. `held` is the work of tenants that have used up a quota, and not part of `work`.
    """

    at: datetime
    work: tuple[OpenWork, ...] = ()
    workers: Mapping[Pool, PoolWorkers] = field(default_factory=dict)
    rates: Mapping[tuple[Pool, str], Rate] = field(default_factory=dict)
    concurrency: Mapping[Pool, int] = field(default_factory=dict)
    paused: frozenset[Pool] = frozenset()
    held: tuple[OpenWork, ...] = ()

    @property
    def demand(self) -> tuple[Demand, ...]:
        """The open requests by deadline, with those held whose deadline is after their quota's return."""
        returning = tuple(work for work in self.held if not work.at_risk)
        return tuple(Demand(work.deadline, work.lines) for work in (*self.work, *returning))

    def of(self, pool: Pool) -> PoolWorkers:
        """Return the workers of a pool."""
        return self.workers.get(pool, PoolWorkers())

    def has_part_of(self, batch: Batch) -> bool:
        """Return whether some of a batch's requests are open here."""
        return any(work.deadline == batch.deadline for work in (*self.work, *self.held))

    def work_of(self, batch: Batch) -> OpenWork:
        """Return the open work of a batch, found by its deadline; that of a new batch is alone."""
        lines = batch.total - batch.completed - batch.failed
        pinned = batch.pool is Pool.DEDICATED
        new = OpenWork(batch.deadline, batch.model, lines, sharer=-1)
        work = next((work for work in self.work if work.deadline == batch.deadline), new)
        if batch.fleet is None:
            lines = work.lines
        return replace(work, lines=lines, at_risk=batch.at_risk, pinned=pinned)

    def forecast(self, batch: Batch, fleet: FleetCapacity) -> Forecast | None:
        """Return the expected end of a batch; None unless in progress."""
        if batch.status is not BatchStatus.IN_PROGRESS:
            return None
        if any(work.deadline == batch.deadline for work in self.held):
            return Forecast()
        work = self.work_of(batch)
        if work.lines <= 0:
            return Forecast(self.at, self.at, self.at)
        turn = self._turn(batch, work, fleet)
        bound, is_backed = self._bound(work, fleet)
        left = (work.deadline - self.at).total_seconds()
        is_backed = is_backed and turn.limited < left
        served = min(turn.seconds, bound) if is_backed or work.at_risk else turn.seconds
        pool = Pool.DEDICATED if work.pinned else Pool.SPOT
        likely = max(served, turn.limited) + self._tail(work, pool, fleet, 1.0)
        likely = max(likely, self._last(work) + self._request_seconds(work, pool, fleet))
        low, high = self._range(work, fleet, likely)
        full = self._turn(batch, work, fleet, is_full=True)
        soonest = min(full.seconds, self._soonest(work, fleet)) if is_backed else full.seconds
        if self.of(pool).ready < self.wanted(pool, fleet):
            low = min(low, max(soonest, full.limited))
        if is_backed and self._is_overtaken(work):
            high = max(high, bound)
        if is_backed and likely <= left:
            high = min(high, left)
        return Forecast(
            self._after(low),
            self._after(likely),
            self._after(high),
            round(turn.own),
            round(turn.others),
            is_limited=turn.limited >= served,
            by_deadline=is_backed and bound < turn.seconds,
        )

    def _is_overtaken(self, work: OpenWork) -> bool:
        """Return whether work of a higher priority may come until the deadline is tight."""
        return any(
            other.sharer == work.sharer and other.priority > work.priority for other in self.work
        )

    def measured(self, capacity: Capacity) -> Capacity:
        """Return the capacity with measured rates, as the scheduler computes it."""
        ended, retried = self._attempt_counts()
        dedicated = {
            model: rate for (pool, model), rate in self.rates.items() if pool is Pool.DEDICATED
        }
        models = frozenset(work.model for work in self.work if work.model is not None)
        state = SchedulerState(
            self.at,
            (),
            models=models,
            ended=ended,
            retried=retried,
            rates=dedicated,
            concurrency=self.concurrency.get(Pool.DEDICATED),
            paused=self.paused,
        )
        return state.measured(capacity)

    def measured_rate(self, pool: Pool, model: str | None) -> float | None:
        """Return a replica's measured requests per second for a model; None if unmeasured."""
        rate = self._measurement(pool, model)
        return None if rate is None else rate.mean

    def rate(self, pool: Pool, prior: float) -> float:
        """Return the requests per second of a replica, weighted by the open work of each model."""
        key = (pool, prior)
        if key not in self._mean_rates:
            self._mean_rates[key] = self._mean_rate(pool, prior)
        return self._mean_rates[key]

    @cached_property
    def _mean_rates(self) -> dict[tuple[Pool, float], float]:
        # A forecast needs them for each open batch.
        return {}

    def _mean_rate(self, pool: Pool, prior: float) -> float:
        lines = sum(work.lines for work in self.work)
        seconds = sum(
            work.lines / (self.measured_rate(pool, work.model) or prior) for work in self.work
        )
        return lines / seconds if seconds > 0 else self.measured_rate(pool, None) or prior

    def wanted(self, pool: Pool, fleet: FleetCapacity) -> int:
        """Return the number of replicas that the open work of a pool wants, within its bounds."""
        if pool is Pool.DEDICATED:
            return fleet.dedicated.replicas
        if fleet.spot is None:
            return 0
        lines = sum(work.lines for work in self.work if not work.pinned)
        return fleet.spot.replicas_for(lines)

    @cached_property
    def attempts(self) -> float:
        """The mean number of attempts per request."""
        return attempts_per_line(*self._attempt_counts())

    def _turn(
        self, batch: Batch, work: OpenWork, fleet: FleetCapacity, *, is_full: bool = False
    ) -> Turn:
        """Return the turn of a batch with the replicas that run or start now.

        With `is_full` all replicas start that the open work wants.
        """
        pool = Pool.DEDICATED if work.pinned else Pool.SPOT
        replicas = self._replicas(batch, pool, fleet, is_full=is_full)
        mine = self._contender(work, pool, fleet)
        rivals = [each for each in self._contenders(pool, fleet) if each.left != mine.left]
        if work.pinned:
            # Dedicated serves the earliest deadline first, whose requests ever it is.
            ahead = sum(rival.lines for rival in rivals if rival.left < mine.left)
            seconds = seconds_to_run(ahead + mine.lines, replicas)
            limited = mine.lines / mine.max_rate
            return Turn(seconds, others=ahead / self.attempts, limited=limited)
        turn = turn_of(mine, rivals, replicas)
        return replace(turn, own=turn.own / self.attempts, others=turn.others / self.attempts)

    @cached_property
    def _contenders_of(self) -> dict[tuple[Pool, FleetCapacity], tuple[Contender, ...]]:
        # The forecasts of a list share them.
        return {}

    def _contenders(self, pool: Pool, fleet: FleetCapacity) -> tuple[Contender, ...]:
        """Return the open batches that wait for a pool."""
        key = (pool, fleet)
        if key not in self._contenders_of:
            self._contenders_of[key] = tuple(
                self._contender(work, pool, fleet)
                for work in self.work
                if work.lines > 0 and work.pinned is (pool is Pool.DEDICATED)
            )
        return self._contenders_of[key]

    def _contender(self, work: OpenWork, pool: Pool, fleet: FleetCapacity) -> Contender:
        return Contender(
            left=(work.deadline - self.at).total_seconds(),
            lines=work.lines * self.attempts,
            sharer=work.sharer,
            weight=work.weight,
            max_rate=self._max_rate(work, pool, fleet),
            at_risk=work.at_risk,
            priority=work.priority,
            barrier=math.inf if work.barrier is None else (work.barrier - self.at).total_seconds(),
        )

    def _max_rate(self, work: OpenWork, pool: Pool, fleet: FleetCapacity) -> float:
        """Return the requests per second that a tenant's limit allows, by Little's law."""
        if work.max_running is None:
            return math.inf
        return work.max_running / self._request_seconds(work, pool, fleet)

    def _replicas(
        self, batch: Batch, pool: Pool, fleet: FleetCapacity, *, is_full: bool
    ) -> list[Replicas]:
        """Return the replicas of a pool that run, and those that start."""
        workers = self.of(pool)
        if pool in self.paused or workers.is_stranded:
            return []
        rate, cold_start = self.rate(pool, fleet.dedicated.rate), fleet.dedicated.cold_start
        groups = [
            Replicas(workers.ready, rate),
            Replicas(workers.starting, rate, cold_start / 2),
        ]
        present = workers.ready + workers.away + workers.starting
        since = batch.in_progress_at or batch.created_at
        age = max(0.0, (self.at - since).total_seconds())
        if is_full or (pool is Pool.SPOT and age < cold_start):
            pending = self.wanted(pool, fleet) - present
        else:
            # Requests on dedicated keep one replica there.
            pending = 1 if pool is Pool.DEDICATED and present == 0 else 0
        if pending > 0 and self.wanted(pool, fleet) > 0:
            start = cold_start - age if age < cold_start else cold_start / 2
            groups.append(Replicas(pending, rate, start))
        return groups

    def _bound(self, work: OpenWork, fleet: FleetCapacity) -> tuple[float, bool]:
        """Return the end with all of dedicated, or as late as the deadline allows if it can wait.

        The flag tells whether dedicated backs the deadline, so that the batch ends by it.
        """
        workers = self.of(Pool.DEDICATED)
        available = fleet.dedicated.replicas - workers.away
        if Pool.DEDICATED in self.paused or workers.is_stranded or available <= 0:
            return math.inf, False
        soonest = self._soonest(work, fleet)
        if work.at_risk:
            return soonest, False
        lost = self.measured(fleet.dedicated).lost
        return max(soonest, (work.deadline - self.at).total_seconds() - lost), True

    def _soonest(self, work: OpenWork, fleet: FleetCapacity) -> float:
        """Return the end with all of dedicated, and the spot workers that run now.

        All open requests with an earlier deadline go first.
        """
        rate, cold_start = (
            self.rate(Pool.DEDICATED, fleet.dedicated.rate),
            fleet.dedicated.cold_start,
        )
        available = max(0, fleet.dedicated.replicas - self.of(Pool.DEDICATED).away)
        ready = min(self.of(Pool.DEDICATED).ready, available)
        replicas = [Replicas(ready, rate), Replicas(available - ready, rate, cold_start)]
        if not work.pinned and Pool.SPOT not in self.paused:
            spot_rate = self.rate(Pool.SPOT, fleet.dedicated.rate)
            replicas.append(Replicas(self.of(Pool.SPOT).ready, spot_rate))
        lines = work.lines + sum(
            other.lines for other in self.work if other.deadline < work.deadline
        )
        return seconds_to_run(lines * self.attempts, replicas)

    def _range(self, work: OpenWork, fleet: FleetCapacity, likely: float) -> tuple[float, float]:
        """Return a low and a high end around the likely one, which may be infinite.

        The logarithm of the end varies with the error of the rate, the variation of single requests,
        and that of capacity and competing work.
        """
        pool = Pool.DEDICATED if work.pinned else Pool.SPOT
        measurement = self._measurement(pool, work.model)
        error = UNMEASURED if measurement is None else measurement.relative_error
        whole = max(work.lines, sum(other.lines for other in self.work))
        unsteady = 0.0 if work.pinned else 1 + CROWD * (1 - work.lines / whole)
        variance = min(error, UNMEASURED) ** 2 + 1 / work.lines
        sooner = math.exp(QUANTILE * math.sqrt(variance + (SOONER * unsteady) ** 2))
        later = math.exp(QUANTILE * math.sqrt(variance + (LATER * unsteady) ** 2))
        tail = self._tail(work, pool, fleet, 1.0)
        longer = self._tail(work, pool, fleet, 0.05) - tail
        request = self._request_seconds(work, pool, fleet)
        high = likely + math.hypot(likely * (later - 1), longer, 2 * request)
        return max(0.0, likely - tail) / sooner, high

    def _tail(self, work: OpenWork, pool: Pool, fleet: FleetCapacity, chance: float) -> float:
        """Return the time of the retries that at least `chance` of the last requests still need.

        Of n requests that each fail with probability p, `chance` or more need k retries while
        n p^k >= chance.
        """
        if not work.retried:
            return 0.0
        # One more success: while no request has ended, the share is not known to be all.
        failing = work.retried / (work.ended + work.retried + 1)
        chain = math.log(max(1.0, work.lines / chance)) / -math.log(failing)
        return int(chain) * (fleet.retry_delay + self._request_seconds(work, pool, fleet))

    def _last(self, work: OpenWork) -> float:
        """Return the seconds until the last request is available; a failed one waits for its retry."""
        return 0.0 if work.last_at is None else max(0.0, (work.last_at - self.at).total_seconds())

    def _request_seconds(self, work: OpenWork, pool: Pool, fleet: FleetCapacity) -> float:
        """Return the mean time from claim to result.

        At first only short requests have a result: the time at the measured rate counts as many
        results as a worker runs at a time, twice.
        """
        in_flight = fleet.dedicated.in_flight_of(self.concurrency.get(pool))
        expected = in_flight / self.rate(pool, fleet.dedicated.rate)
        known = 2 * in_flight
        return (work.running_seconds + known * expected) / (work.ended + known)

    def _after(self, seconds: float) -> datetime | None:
        try:
            return self.at + timedelta(seconds=seconds)
        except OverflowError:
            return None

    def _attempt_counts(self) -> tuple[int, int]:
        return sum(work.ended for work in self.work), sum(work.retried for work in self.work)

    def _measurement(self, pool: Pool, model: str | None) -> Rate | None:
        for name in (model, _MIXED):
            rate = None if name is None else self.rates.get((pool, name))
            if rate is not None and rate.mean:
                return rate
        return None


@dataclass(frozen=True)
class Workloads:
    """The open work of all fleets at the database's time `at`."""

    at: datetime
    by_fleet: Mapping[str, Workload] = field(default_factory=dict)

    def of(self, fleet: str) -> Workload:
        """Return the open work of a fleet."""
        return self.by_fleet.get(fleet) or Workload(self.at)

    def fleets_of(self, batch: Batch) -> tuple[str, ...]:
        """Return the fleets that run a batch; of a spread one, those with open requests."""
        if batch.fleet is not None:
            return (batch.fleet,)
        return tuple(
            fleet for fleet, work in sorted(self.by_fleet.items()) if work.has_part_of(batch)
        )

    def last_fleet(self, batch: Batch, capacities: Mapping[str, FleetCapacity]) -> str:
        """Return the fleet whose part of a batch ends last."""
        return self._last_part(batch, capacities)[0]

    def forecast(self, batch: Batch, capacities: Mapping[str, FleetCapacity]) -> Forecast | None:
        """Return the expected end of a batch: that of its last part; None unless in progress."""
        return self._last_part(batch, capacities)[1]

    def _last_part(
        self, batch: Batch, capacities: Mapping[str, FleetCapacity]
    ) -> tuple[str, Forecast | None]:
        unknown = datetime.max.replace(tzinfo=self.at.tzinfo)
        parts = [
            (fleet, self.of(fleet).forecast(batch, capacities.get(fleet, NO_CAPACITY)))
            for fleet in self.fleets_of(batch) or (DEFAULT_FLEET,)
        ]
        return max(parts, key=lambda part: (part[1] and part[1].likely) or unknown)

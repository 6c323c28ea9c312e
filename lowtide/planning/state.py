"""The scheduler's state at a decision, and the plan that follows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lowtide.core.pools import DEFAULT_FLEET, Depth, Pool
from lowtide.planning.demand import attempts_per_line
from lowtide.planning.escalation import plan_tick
from lowtide.planning.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from lowtide.planning.demand import Capacity, Rate
    from lowtide.planning.escalation import OpenBatch, Plan


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The result of a sweep.

    It took `reaped` requests from expired leases, `interrupted` of them on spot. It ended `in_time`
    and `late` requests for good, before and after their deadline, `buried` of them as dead letters.
    Requests that waited for a quota of their tenant until their deadline are not `late`.
    """

    reaped: int
    interrupted: int
    in_time: int
    late: int
    buried: int


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """A snapshot of all open work of a fleet.

    `present` dedicated replicas work; `wished` holds the time since which each wanted one has been
    wanted, longest first. `models` are those of the open batches, whose requests so far `ended` or
    were `retried`; `rates` are dedicated's, by model ("" for workers that ran several), `concurrency` is
    what its last search for the requests in flight found. `paused` pools resume at an unknown time.
    `stranded` maps each pool whose engines are all unavailable to its number of workers; `away` is the
    number of dedicated workers without an engine.
    """

    now: datetime
    batches: tuple[OpenBatch, ...]
    present: int = 0
    wished: tuple[datetime, ...] = ()
    models: frozenset[str] = frozenset()
    ended: int = 0
    retried: int = 0
    rates: Mapping[str, Rate] = field(default_factory=dict)
    concurrency: int | None = None
    paused: frozenset[Pool] = frozenset()
    stranded: Mapping[Pool, int] = field(default_factory=dict)
    away: int = 0
    fleet: str = DEFAULT_FLEET

    @property
    def idle(self) -> frozenset[Pool]:
        """The pools that run nothing: paused ones, and those without an engine."""
        return self.paused | frozenset(self.stranded)

    def depths(self) -> dict[Pool, Depth]:
        """Return the requests that wait and run in each pool."""
        return {
            Pool.SPOT: Depth(
                sum(batch.spot for batch in self.batches),
                sum(batch.running_spot for batch in self.batches),
            ),
            Pool.DEDICATED: Depth(
                sum(batch.dedicated for batch in self.batches),
                sum(batch.running_dedicated for batch in self.batches),
            ),
        }

    def starts(self, cold_start: float) -> list[float]:
        """Return the seconds until each dedicated replica works.

        An overdue replica counts like one that was never wanted.
        """
        pending = []
        for since in self.wished[self.present :]:
            remaining = cold_start - (self.now - since).total_seconds()
            pending.append(remaining if 0 < remaining <= cold_start else cold_start)
        return [0.0] * self.present + pending

    def wishes(self, replicas: int) -> tuple[datetime, ...]:
        """Return the time since which each of `replicas` has been wanted, longest first."""
        return self.wished[:replicas] + (self.now,) * (replicas - len(self.wished))

    def measured(self, capacity: Capacity) -> Capacity:
        """Return the capacity as measured, with the configured rate as the prior.

        Requests of several models count at the rate of the slowest model. A pool that is paused or
        has no engine has no replicas, and a replica whose engine is unavailable does not count. The
        requests in flight are those found once the rates are measured at them: divided by a rate for
        fewer, they would be the time of a request many times over.
        """
        rates = [
            self.rates[key]
            for model in self.models
            if (key := model if model in self.rates else "") in self.rates
        ]
        is_settled = bool(rates) and all(rate.is_settled for rate in rates)
        return replace(
            capacity,
            rate=min((rate.lower_bound(capacity.rate) for rate in rates), default=capacity.rate),
            replicas=0 if Pool.DEDICATED in self.idle else max(0, capacity.replicas - self.away),
            in_flight=capacity.in_flight_of(self.concurrency if is_settled else None),
            attempts=attempts_per_line(self.ended, self.retried),
        )


def decide(state: SchedulerState, capacity: Capacity) -> Plan:
    """Return the changes to make now, given the configured capacity.

    The bound never counts on spot, so a pause of spot breaks no promise; but no request goes back
    to spot while it runs nothing. While dedicated is paused or has no engine, nothing is promised:
    its waiting requests go back to spot, and every open batch is at risk.
    """
    reason = _no_promise(state, capacity)
    plan = plan_tick(
        state.batches,
        state.now,
        state.measured(capacity),
        state.starts(capacity.cold_start),
    )
    returns = (
        ()
        if Pool.SPOT in state.idle
        else tuple(replace(move, reason=reason or Reason.SPOT_CAUGHT_UP) for move in plan.returns)
    )
    return replace(plan, returns=returns, risk=reason or Reason.DEADLINE_BOUND)


def _no_promise(state: SchedulerState, capacity: Capacity) -> Reason | None:
    """Return the reason for which dedicated promises nothing; None if it does."""
    if Pool.DEDICATED in state.paused:
        return Reason.POOL_PAUSED
    if Pool.DEDICATED in state.stranded:
        return Reason.ENGINE_AWAY
    return None if capacity.replicas else Reason.NO_DEDICATED


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan and the requests that it moved; some may have been claimed or settled by then.

    `before` holds the requests that waited and ran in each pool at the decision, `paused` the
    paused pools, `stranded` the number of workers in pools whose engines were all unavailable.
    `fell_back` requests went to another fleet: `left` by the pool that they waited for; `joined` ones
    came from others, to dedicated.
    """

    plan: Plan
    before: Mapping[Pool, Depth]
    paused: frozenset[Pool] = frozenset()
    stranded: Mapping[Pool, int] = field(default_factory=dict)
    escalated: int = 0
    revoked: int = 0
    returned: int = 0
    fell_back: int = 0
    left: Mapping[Pool, int] = field(default_factory=dict)
    joined: int = 0

    @property
    def waiting(self) -> dict[Pool, int]:
        """The requests that wait in each pool now."""
        moved = self.escalated - self.returned
        spot = self.before[Pool.SPOT].queued - moved
        dedicated = self.before[Pool.DEDICATED].queued + moved + self.revoked
        return {
            Pool.SPOT: spot - self.left.get(Pool.SPOT, 0),
            Pool.DEDICATED: dedicated - self.left.get(Pool.DEDICATED, 0) + self.joined,
        }

    @property
    def after(self) -> dict[Pool, Depth]:
        """The requests that wait and run in each pool now; revoked ones ran on spot."""
        running = {pool: depth.running for pool, depth in self.before.items()}
        running[Pool.SPOT] -= self.revoked
        return {pool: Depth(queued, running[pool]) for pool, queued in self.waiting.items()}
